#include "launcher/arg_max.hpp"

#include <limits>

#include "core/error.hpp"

namespace reprise {

namespace {

ArgMax arg_max(VectorView<const float> row) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  ArgMax best{-kInfinity, -1};
  for (std::int64_t i = 0; i < row.size; ++i) {
    const float value = row[i] == row[i] ? row[i] : kInfinity;
    if (best.col < 0 || value > best.value) best = {value, static_cast<std::int32_t>(i)};
  }
  return best;
}

}  // namespace

void arg_max_rows(const CpuStream& stream, MatrixView<const float> rows, VectorView<ArgMax> best) {
  REPRISE_CHECK(best.size == rows.rows, "{} results for {} rows", best.size, rows.rows);
  stream.parallel_for(rows.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) best[i] = arg_max(rows.row(i));
  });
}

}  // namespace reprise
