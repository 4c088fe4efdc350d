#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.hpp"
#include "core/math.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// Rows that one partial sum covers. Fixed, so that sums over rows have the same bits for every thread count.
inline constexpr std::int64_t kColumnSumRows = 64;

/// total += sums over rows, made of one partial sum per kColumnSumRows rows and added in order:
/// body(row_begin, row_end, partial) adds its rows to the zeroed partial [cols].
template <class Body>
void accumulate_column_sum(const CpuStream& stream, Arena& arena, std::int64_t rows, VectorView<float> total,
                           const Body& body) {
  const Arena::Scope scope(arena);
  const MatrixView<float> partials =
      arena.matrix<float>(ceil_div(rows, kColumnSumRows), total.size, "partial column sums");
  stream.parallel_for(rows, kColumnSumRows, [&](std::int64_t begin, std::int64_t end) {
    float* partial = partials.row(begin / kColumnSumRows).data;
    std::fill(partial, partial + total.size, 0.0f);
    body(begin, end, partial);
  });
  for (std::int64_t chunk = 0; chunk < partials.rows; ++chunk) {
    for (std::int64_t c = 0; c < total.size; ++c) total[c] += partials(chunk, c);
  }
}

}  // namespace reprise
