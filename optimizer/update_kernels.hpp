#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/view.hpp"
#include "optimizer/angle_cap.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise {

// Kernels over one chunk of coordinates, single-threaded; chunks are spread over threads by the caller. All views have
// the same size. Coordinates do not depend on each other and a tail goes through the same instructions, so a
// coordinate's bits do not depend on where chunks and shards are cut.

/// <G,m>, <G,G>, <m,m> in float64 and the count of non-finite coordinates: one read of G and m.
[[nodiscard]] GroupSums moclip_sums(VectorView<const float> gradient, VectorView<const float> exp_avg);
/// <G,G> and the count of non-finite coordinates.
[[nodiscard]] GroupSums adamw_sums(VectorView<const float> gradient);

/// Scalars of step t (from 1) with g' = gradient G + momentum m, folded in float64 and rounded once.
[[nodiscard]] UpdateScalars make_update_scalars(const OptimizerOptions& options, std::int64_t t, double lr,
                                                double gradient, double momentum);

/// One pass over memory: m = beta1 m + (1 - beta1) g', v = beta2 v + (1 - beta2) g'^2,
/// w -= lr atan2(m_hat, sqrt(v_hat)) + lr weight_decay w, G = 0.
/// Moments below the smallest normal float32 become 0, so that rows that are never touched do not end as subnormals; in
/// the angle v counts as at least that number, so atan2(0, 0) = 0. NaN propagates.
/// `parameter` (empty for float32 storage, whose parameters are the master weights) gets the rounded master weights.
void moclip_update(const UpdateScalars& scalars, VectorView<float> gradient, VectorView<float> exp_avg,
                   VectorView<float> exp_avg_sq, VectorView<float> master, VectorView<BFloat16> parameter);
/// The same with w -= lr m_hat / (sqrt(v_hat) + eps) + decay w.
void adamw_update(const UpdateScalars& scalars, VectorView<float> gradient, VectorView<float> exp_avg,
                  VectorView<float> exp_avg_sq, VectorView<float> master, VectorView<BFloat16> parameter);

}  // namespace reprise
