#pragma once

#include <cstdint>

#include "loss/candidate_index.hpp"

namespace reprise {

/// d_weight[v] += sum over tiles that list v and their tokens t of delta_tv h_t, for listed rows only.
///
/// Tiles are taken in segments; a segment's hidden states are packed in panels of kPanelColumns columns, and each
/// listed row of d_weight is read and written once per segment and panel. Large tiles are small dense products into the
/// segment's row sums, tiles of few tokens are sorted by row and summed in registers (GradientOrder). One thread owns a
/// (row, panel) and every sum runs in the order of the tokens: the same bits for every thread count, no atomics.
/// deltas: as LocalCandidates lays logits out; hidden: [T, D].
void add_candidate_gradient(const Context& context, const LocalCandidates& candidates, VectorView<const float> deltas,
                            MatrixView<const float> hidden, MatrixView<float> d_weight);

enum class GradientOrder : std::uint8_t { kByRow, kByTile };
[[nodiscard]] GradientOrder choose_gradient_order(const LocalCandidates& candidates);
/// Tokens of a segment in either order: the panel of hidden states, or the row sums, should stay in the caches.
[[nodiscard]] constexpr std::int64_t segment_tokens(GradientOrder order) {
  return order == GradientOrder::kByRow ? 1024 : 512;
}

}  // namespace reprise
