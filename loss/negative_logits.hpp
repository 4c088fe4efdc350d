#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"
#include "loss/softmax.hpp"

namespace reprise {

/// A tile's view of the sampled negatives.
struct NegativeTile {
  std::int64_t member_begin = 0, member_end = 0;  ///< into `members`
  float raise = 0.0f;                             ///< what the logits of those outside the tile are raised by
};

/// Which of this rank's negatives are candidates of their tile; on the stream's device.
struct NegativeSets {
  VectorView<const NegativeTile> tiles;
  VectorView<const std::int32_t> tile_of;  ///< [T]
  VectorView<const std::int32_t> members;  ///< columns of negatives that their tile lists already
  std::int64_t num_ids = 0;                ///< negatives of this rank; matrices may have more columns, which count not

  [[nodiscard]] NegativeSets tokens(std::int64_t begin, std::int64_t count) const {
    return {tiles, tile_of.slice(begin, count), members, num_ids};
  }
  [[nodiscard]] constexpr std::int64_t num_kept(const NegativeTile& tile) const {
    return num_ids - (tile.member_end - tile.member_begin);
  }
};

/// Adds the kept negatives to the statistics of tokens [T], brings the unnormalised gradients of their hidden states,
/// `accumulator` [T, D], to the new maxima, and leaves exp(z + raise - max) dz/dx in `factors` [T, columns], 0 for
/// members. In `logits` [T, columns] members become -inf. F: float, BFloat16.
template <class F>
void add_negatives(const CpuStream& stream, const NegativeSets& sets, const LogitRule& rule, MatrixView<float> logits,
                   VectorView<TokenStatistics> local, MatrixView<float> accumulator, MatrixView<F> factors);
template <class F>
void add_negatives(const CudaStream& stream, const NegativeSets& sets, const LogitRule& rule, MatrixView<float> logits,
                   VectorView<TokenStatistics> local, MatrixView<float> accumulator, MatrixView<F> factors);
template <class F>
void add_negatives(const Stream& stream, const NegativeSets& sets, const LogitRule& rule, MatrixView<float> logits,
                   VectorView<TokenStatistics> local, MatrixView<float> accumulator, MatrixView<F> factors) {
  stream.visit([&](const auto& device) { add_negatives<F>(device, sets, rule, logits, local, accumulator, factors); });
}

/// deltas [T, columns] = weight exp(z + raise - max) inverse_sum dz/dx of the logits that add_negatives left, 0 for
/// members, spare columns and tokens without weight. Consumes the logits: float deltas lie in their place.
template <class F>
void negative_gradient(const CpuStream& stream, const NegativeSets& sets, const LogitRule& rule,
                       const SoftmaxTargets& targets, MatrixView<float> logits, MatrixView<F> deltas);
template <class F>
void negative_gradient(const CudaStream& stream, const NegativeSets& sets, const LogitRule& rule,
                       const SoftmaxTargets& targets, MatrixView<float> logits, MatrixView<F> deltas);
template <class F>
void negative_gradient(const Stream& stream, const NegativeSets& sets, const LogitRule& rule,
                       const SoftmaxTargets& targets, MatrixView<float> logits, MatrixView<F> deltas) {
  stream.visit([&](const auto& device) { negative_gradient<F>(device, sets, rule, targets, logits, deltas); });
}

}  // namespace reprise
