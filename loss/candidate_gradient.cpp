#include "loss/candidate_gradient.hpp"

#include <algorithm>

#include "core/math.hpp"
#include "loss/candidate_gradient_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;
constexpr std::int64_t kRowGrain = 64;
constexpr std::int64_t kRowsAhead = 8;
constexpr std::int64_t kMinTileTokens = 3;  // mean tokens of a tile from which a small dense product pays

/// [ceil(D / kPanelColumns)][tokens][kPanelColumns], zero behind column D.
class Panels {
 public:
  Panels(const CpuStream& stream, const Context& context, MatrixView<const float> hidden)
      : tokens_(hidden.rows),
        columns_(hidden.cols),
        packed_(context.arena.vector<float>(count() * hidden.rows * kPanelColumns, "panels of hidden states")) {
    stream.parallel_for(tokens_, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = 0; i < count(); ++i) {
        for (std::int64_t t = begin; t < end; ++t) {
          float* to = packed_.data + (i * tokens_ + t) * kPanelColumns;
          std::copy_n(&hidden(t, first_column(i)), columns(i), to);
          std::fill(to + columns(i), to + kPanelColumns, 0.0f);
        }
      }
    });
  }
  [[nodiscard]] std::int64_t count() const { return ceil_div(columns_, kPanelColumns); }
  [[nodiscard]] std::int64_t first_column(std::int64_t panel) const { return panel * kPanelColumns; }
  [[nodiscard]] std::int64_t columns(std::int64_t panel) const {
    return std::min(kPanelColumns, columns_ - first_column(panel));
  }
  /// [tokens, kPanelColumns]
  [[nodiscard]] const float* panel(std::int64_t index) const { return packed_.data + index * tokens_ * kPanelColumns; }

 private:
  std::int64_t tokens_, columns_;
  VectorView<float> packed_;
};

/// A later element's place in d_weight, to be loaded ahead (memory answers after some rows' work), or null at the end.
const float* later_row(MatrixView<float> d_weight, VectorView<const std::int64_t> rows, std::int64_t index,
                       std::int64_t column) {
  return index + kRowsAhead < rows.size ? &d_weight(rows[index + kRowsAhead], column) : nullptr;
}

void add_by_row(const CpuStream& stream, const ListedRows& listed, const RowEntries& sorted, const Panels& panels,
                MatrixView<float> d_weight) {
  const std::int64_t chunks = ceil_div(listed.rows.size, kRowGrain);
  stream.parallel_for(panels.count() * chunks, 1, [&](std::int64_t task, std::int64_t) {
    const std::int64_t panel = task / chunks, begin = task % chunks * kRowGrain;
    const std::int64_t column = panels.first_column(panel);
    for (std::int64_t i = begin; i < std::min(begin + kRowGrain, listed.rows.size); ++i) {
      REPRISE_SIMD_CALL(add_row_gradient, panels.panel(panel), sorted.entries.data + sorted.begin[i],
                        sorted.begin[i + 1] - sorted.begin[i], &d_weight(listed.rows[i], column), panels.columns(panel),
                        later_row(d_weight, listed.rows, i, column));
    }
  });
}

/// Asks for one panel of the rows [begin, end) of d_weight, long before they are updated.
void load_rows_ahead(MatrixView<float> d_weight, const ListedRows& listed, Range rows, std::int64_t column,
                     std::int64_t columns) {
  constexpr std::int64_t kLine = 16;  // floats
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const float* row = &d_weight(listed.rows[i], column);
    for (std::int64_t c = 0; c < columns; c += kLine) __builtin_prefetch(row + c, 1, 2);
  }
}

/// What the products of one panel with the rows [part.begin, part.end) of `listed` need.
struct PanelTask {
  Range part;
  std::int64_t column, columns;
  const float* hidden;  ///< [tokens, kPanelColumns]
  float* sums;          ///< [part.size(), kPanelColumns], zero before and after
};

/// While the tiles are multiplied, the rows that the sums will be added to come from memory.
void add_panel_by_tile(const LocalCandidates& candidates, Range tiles, const ListedRows& listed,
                       VectorView<const float> deltas, const PanelTask& task, MatrixView<float> d_weight) {
  const std::int64_t id_begin = candidates.tiles[tiles.begin].id_begin;
  for (std::int64_t i = tiles.begin; i < tiles.end; ++i) {
    const Range ahead = even_shard(task.part.size(), tiles.size(), i - tiles.begin);
    load_rows_ahead(d_weight, listed, {task.part.begin + ahead.begin, task.part.begin + ahead.end}, task.column,
                    task.columns);
    const LocalCandidates::Tile& tile = candidates.tiles[i];
    const std::int32_t* slots = listed.slots.data + tile.id_begin - id_begin;
    const std::int32_t* from = std::lower_bound(slots, slots + tile.num_ids(), task.part.begin);
    const std::int32_t* to = std::lower_bound(from, slots + tile.num_ids(), task.part.end);
    REPRISE_SIMD_CALL(add_tile_gradient, task.hidden + (tile.token_begin - listed.token_begin) * kPanelColumns,
                      tile.tokens(), from, to - from, deltas.data + tile.logits + (from - slots) * tile.tokens(),
                      task.part.begin, task.sums);
  }
  for (std::int64_t i = task.part.begin; i < task.part.end; ++i) {
    REPRISE_SIMD_CALL(flush_row_sums, task.sums + (i - task.part.begin) * kPanelColumns,
                      &d_weight(listed.rows[i], task.column), task.columns,
                      later_row(d_weight, listed.rows, i, task.column));
  }
}

void add_by_tile(const CpuStream& stream, const Context& context, const LocalCandidates& candidates, Range tiles,
                 const ListedRows& listed, VectorView<const float> deltas, const Panels& panels,
                 MatrixView<float> d_weight) {
  // Tasks are (panel, part of the rows); a worker takes every n-th and has row sums of its own.
  const std::int64_t workers = stream.num_threads();
  const std::int64_t parts = ceil_div(workers, panels.count());
  const std::int64_t part_rows = ceil_div(std::max<std::int64_t>(listed.rows.size, 1), parts);
  const auto all_sums = context.arena.matrix<float>(workers, part_rows * kPanelColumns, "sums of listed rows");
  stream.parallel_for(workers, 1, [&](std::int64_t worker, std::int64_t) {
    const VectorView<float> sums = all_sums.row(worker);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::int64_t task = worker; task < panels.count() * parts; task += workers) {
      const std::int64_t panel = task / parts, begin = std::min(task % parts * part_rows, listed.rows.size);
      const Range part{begin, std::min(begin + part_rows, listed.rows.size)};
      add_panel_by_tile(candidates, tiles, listed, deltas,
                        {part, panels.first_column(panel), panels.columns(panel), panels.panel(panel), sums.data},
                        d_weight);
    }
  });
}

}  // namespace

GradientOrder choose_gradient_order(const LocalCandidates& candidates) {
  std::int64_t ids = 0;
  for (const LocalCandidates::Tile& tile : candidates.tiles) ids += tile.num_ids();
  return candidates.num_logits >= kMinTileTokens * ids ? GradientOrder::kByTile : GradientOrder::kByRow;
}

template <class T>
GradientLimits choose_gradient_limits(const CpuStream&) {
  return {};
}

template <class T>
void add_candidate_gradient(const CpuStream& stream, const Context& context, const LocalCandidates& candidates,
                            const std::vector<GradientPart>&, VectorView<const float> deltas,
                            const HeadHidden<T>& hidden, MatrixView<float> d_weight) {
  const GradientOrder order = choose_gradient_order(candidates);
  for (std::int64_t first = 0; first < candidates.tiles.size;) {
    const Arena::Scope scope(context.arena);
    const std::int64_t last = segment_end(candidates, first, segment_tokens(order));
    const ListedRows listed = list_rows(context, candidates, first, last);
    const Panels panels(stream, context, hidden.single.row_range(listed.token_begin, listed.tokens()));
    if (order == GradientOrder::kByRow) {
      const RowEntries sorted = sort_by_row(context, candidates, first, last, listed, deltas);
      add_by_row(stream, listed, sorted, panels, d_weight);
    } else {
      add_by_tile(stream, context, candidates, {first, last}, listed, deltas, panels, d_weight);
    }
    first = last;
  }
}

template <class T>
void CandidateGradient::plan(const Context& context, const LocalCandidates& candidates, HostArrays& host_arrays,
                             std::optional<GradientLimits> limits) {
  parts_.clear();
  if (context.stream.is_cpu()) return;
  if (!limits) {
    limits = context.stream.visit([](const auto& device) { return choose_gradient_limits<T>(device); });
  }
  parts_ = plan_gradient(context, candidates, *limits, host_arrays);
}

template <class T>
void CandidateGradient::add(const Context& context, const LocalCandidates& candidates, VectorView<const float> deltas,
                            const HeadHidden<T>& hidden, MatrixView<float> d_weight) const {
  context.stream.visit([&](const auto& device) {
    add_candidate_gradient<T>(device, context, candidates, parts_, deltas, hidden, d_weight);
  });
}

#define REPRISE_INSTANTIATE(T)                                                                             \
  template GradientLimits choose_gradient_limits<T>(const CpuStream&);                                     \
  template void add_candidate_gradient(const CpuStream&, const Context&, const LocalCandidates&,           \
                                       const std::vector<GradientPart>&, VectorView<const float>,          \
                                       const HeadHidden<T>&, MatrixView<float>);                           \
  template void CandidateGradient::plan<T>(const Context&, const LocalCandidates&, HostArrays&,            \
                                           std::optional<GradientLimits>);                                 \
  template void CandidateGradient::add<T>(const Context&, const LocalCandidates&, VectorView<const float>, \
                                          const HeadHidden<T>&, MatrixView<float>) const;
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
