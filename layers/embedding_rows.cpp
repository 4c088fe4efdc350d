#include "layers/embedding_rows.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

EmbeddingRuns EmbeddingRuns::make(VectorView<const std::int32_t> ids, Range range) {
  std::vector<std::uint64_t> keys;  // (id, token) in one sortable number each
  keys.reserve(static_cast<std::size_t>(ids.size));
  for (std::int64_t t = 0; t < ids.size; ++t) {
    if (ids[t] < range.begin || ids[t] >= range.end) continue;
    keys.push_back((static_cast<std::uint64_t>(ids[t]) << 32) | static_cast<std::uint64_t>(t));
  }
  std::sort(keys.begin(), keys.end());
  EmbeddingRuns runs;
  runs.tokens.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i == 0 || (keys[i] >> 32) != (keys[i - 1] >> 32)) runs.begins.push_back(narrow<std::int32_t>(i));
    runs.tokens.push_back(static_cast<std::int32_t>(keys[i] & 0xffffffffu));
  }
  runs.begins.push_back(narrow<std::int32_t>(keys.size()));
  return runs;
}

template <class T>
void lookup_rows(const CpuStream& stream, MatrixView<const T> weight, Range range, VectorView<const std::int32_t> ids,
                 MatrixView<T> output) {
  REPRISE_CHECK(output.rows == ids.size && output.cols == weight.cols && weight.rows == range.size(),
                "{} ids of [{}, {}) in weight [{}, {}] to [{}, {}]", ids.size, range.begin, range.end, weight.rows,
                weight.cols, output.rows, output.cols);
  stream.parallel_for(ids.size, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const VectorView<T> row = output.row(t);
      if (range.begin <= ids[t] && ids[t] < range.end) {
        const VectorView<const T> from = weight.row(ids[t] - range.begin);
        std::copy(from.begin(), from.end(), row.begin());
      } else {
        std::fill(row.begin(), row.end(), T(0.0f));
      }
    }
  });
}

template <class T>
void accumulate_rows(const CpuStream& stream, MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                     VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                     std::int64_t first_id, MatrixView<float> d_weight) {
  REPRISE_CHECK(d_output.rows == ids.size && d_output.cols == d_weight.cols, "gradient [{}, {}] of {} ids to [{}, {}]",
                d_output.rows, d_output.cols, ids.size, d_weight.rows, d_weight.cols);
  stream.parallel_for(begins.size - 1, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t run = begin; run < end; ++run) {
      float* row = d_weight.row(ids[tokens[begins[run]]] - first_id).data;
      for (std::int64_t i = begins[run]; i < begins[run + 1]; ++i) {
        const T* from = d_output.row(tokens[i]).data;
        for (std::int64_t c = 0; c < d_weight.cols; ++c) row[c] += static_cast<float>(from[c]);
      }
    }
  });
}

#define REPRISE_INSTANTIATE(T)                                                                                   \
  template void lookup_rows<T>(const CpuStream&, MatrixView<const T>, Range, VectorView<const std::int32_t>,     \
                               MatrixView<T>);                                                                   \
  template void accumulate_rows<T>(const CpuStream&, MatrixView<const T>, VectorView<const std::int32_t>,        \
                                   VectorView<const std::int32_t>, VectorView<const std::int32_t>, std::int64_t, \
                                   MatrixView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
