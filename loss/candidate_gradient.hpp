#pragma once

#include "loss/candidate_index.hpp"

namespace reprise {

/// d_weight[v] += sum over tiles that list v and their tokens t of delta_tv h_t, for listed rows only.
///
/// Tiles are taken in segments of about kSegmentTokens tokens; a segment's candidates are sorted by row, its hidden
/// states packed in panels of kPanelColumns columns, and each row is updated once per segment and panel from registers.
/// One thread owns a (row, panel), the order of every sum is that of the tokens: the same bits for every thread count.
/// deltas: as LocalCandidates lays logits out; hidden: [T, D].
void add_candidate_gradient(const Context& context, const LocalCandidates& candidates, VectorView<const float> deltas,
                            MatrixView<const float> hidden, MatrixView<float> d_weight);

}  // namespace reprise
