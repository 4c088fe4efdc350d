#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"
#include "loss/candidate_tile.hpp"
#include "loss/softmax.hpp"

namespace reprise {

// From what the head's forward leaves on this rank to gradients. Everything lies on the stream's device.

/// Where gold lies among this rank's candidates.
struct GoldLogits {
  VectorView<const std::int64_t> at;  ///< [T] offset into the candidates' logits, -1: not on this rank
  std::int64_t first_id;              ///< global id of this rank's first row of W
};

/// statistics[t].gold_logit = logits[gold.at[t]] where there is one.
void read_gold_logits(const CpuStream& stream, const GoldLogits& gold, VectorView<const float> logits,
                      VectorView<TokenStatistics> statistics);
void read_gold_logits(const CudaStream& stream, const GoldLogits& gold, VectorView<const float> logits,
                      VectorView<TokenStatistics> statistics);
inline void read_gold_logits(const Stream& stream, const GoldLogits& gold, VectorView<const float> logits,
                             VectorView<TokenStatistics> statistics) {
  stream.visit([&](const auto& device) { read_gold_logits(device, gold, logits, statistics); });
}

/// d_selected [T, D] = w (exp(m - max) inverse_sum A - dz/dx W_gold), rounded once to T: this rank's part of the
/// gradient of the selected hidden states, from A = accumulator [T, D] and m = local[t].max; W_gold where this rank has
/// that row. Consumes the accumulator; for T = float d_selected may be the accumulator. 0 where w is 0, whatever A
/// holds.
template <class T>
void finish_d_selected(const CpuStream& stream, const SoftmaxTargets& targets, VectorView<const TokenStatistics> local,
                       const GoldLogits& gold, const LogitRule& rule, MatrixView<const T> weight,
                       MatrixView<float> accumulator, MatrixView<T> d_selected);
template <class T>
void finish_d_selected(const CudaStream& stream, const SoftmaxTargets& targets, VectorView<const TokenStatistics> local,
                       const GoldLogits& gold, const LogitRule& rule, MatrixView<const T> weight,
                       MatrixView<float> accumulator, MatrixView<T> d_selected);
template <class T>
void finish_d_selected(const Stream& stream, const SoftmaxTargets& targets, VectorView<const TokenStatistics> local,
                       const GoldLogits& gold, const LogitRule& rule, MatrixView<const T> weight,
                       MatrixView<float> accumulator, MatrixView<T> d_selected) {
  stream.visit([&](const auto& device) {
    finish_d_selected<T>(device, targets, local, gold, rule, weight, accumulator, d_selected);
  });
}

/// The candidates' logits become deltas, w (exp(z - max) inverse_sum - [gold]) dz/dx; 0 where w is 0.
void make_deltas(const CpuStream& stream, VectorView<const LocalTile> tiles, const SoftmaxTargets& targets,
                 VectorView<const TokenStatistics> local, const GoldLogits& gold, const LogitRule& rule,
                 VectorView<float> logits);
void make_deltas(const CudaStream& stream, VectorView<const LocalTile> tiles, const SoftmaxTargets& targets,
                 VectorView<const TokenStatistics> local, const GoldLogits& gold, const LogitRule& rule,
                 VectorView<float> logits);
inline void make_deltas(const Stream& stream, VectorView<const LocalTile> tiles, const SoftmaxTargets& targets,
                        VectorView<const TokenStatistics> local, const GoldLogits& gold, const LogitRule& rule,
                        VectorView<float> logits) {
  stream.visit([&](const auto& device) { make_deltas(device, tiles, targets, local, gold, rule, logits); });
}

}  // namespace reprise
