#include "loss/candidate_gradient.hpp"

#include <algorithm>

#include "core/math.hpp"
#include "loss/restricted_head_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;
constexpr std::int64_t kRowGrain = 64;

/// [ceil(D / kPanelColumns)][tokens][kPanelColumns], zero behind column D.
VectorView<float> pack_panels(const Context& context, MatrixView<const float> hidden) {
  const std::int64_t panels = ceil_div(hidden.cols, kPanelColumns);
  const auto packed = context.arena.vector<float>(panels * hidden.rows * kPanelColumns, "panels of hidden states");
  context.stream.cpu().parallel_for(hidden.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const std::int64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, hidden.cols - first);
      for (std::int64_t t = begin; t < end; ++t) {
        float* to = packed.data + (panel * hidden.rows + t) * kPanelColumns;
        std::copy_n(&hidden(t, first), count, to);
        std::fill(to + count, to + kPanelColumns, 0.0f);
      }
    }
  });
  return packed;
}

void add_segment(const Context& context, const RowIndex& index, VectorView<const float> deltas,
                 MatrixView<const float> hidden, MatrixView<float> d_weight) {
  const VectorView<float> packed = pack_panels(context, hidden);
  const std::int64_t panels = ceil_div(hidden.cols, kPanelColumns), chunks = ceil_div(index.rows.size, kRowGrain);
  context.stream.cpu().parallel_for(panels * chunks, 1, [&](std::int64_t task, std::int64_t) {
    const std::int64_t panel = task / chunks, begin = task % chunks * kRowGrain;
    const std::int64_t first = panel * kPanelColumns, columns = std::min(kPanelColumns, hidden.cols - first);
    const float* hidden_panel = packed.data + panel * hidden.rows * kPanelColumns;
    for (std::int64_t i = begin; i < std::min(begin + kRowGrain, index.rows.size); ++i) {
      const std::int64_t entry = index.entry_begin[i], count = index.entry_begin[i + 1] - entry;
      REPRISE_SIMD_CALL(add_row_gradient, hidden_panel, index.entries.data + entry, count, deltas.data,
                        &d_weight(index.rows[i], first), columns);
    }
  });
}

}  // namespace

void add_candidate_gradient(const Context& context, const LocalCandidates& candidates, VectorView<const float> deltas,
                            MatrixView<const float> hidden, MatrixView<float> d_weight) {
  for (std::int64_t first = 0; first < candidates.tiles.size;) {
    const Arena::Scope scope(context.arena);
    const std::int64_t last = segment_end(candidates, first);
    const RowIndex index = index_rows(context, candidates, first, last);
    add_segment(context, index, deltas, hidden.row_range(index.token_begin, index.tokens()), d_weight);
    first = last;
  }
}

}  // namespace reprise
