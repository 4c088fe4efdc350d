#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// The tokens of a micro-batch whose ids lie in a range, sorted by id: where each row of an embedding's gradient finds
/// its addends. Made on the host.
struct EmbeddingRuns {
  std::vector<std::int32_t> tokens;  ///< positions in the micro-batch, ascending within an id
  std::vector<std::int32_t> begins;  ///< [ids + 1]: those of the i-th id are tokens[begins[i]] .. tokens[begins[i + 1]]

  [[nodiscard]] static EmbeddingRuns make(VectorView<const std::int32_t> ids, Range range);
};

/// output [tokens, cols]: row t = weight row ids[t] - range.begin, or zeros where ids[t] lies outside the range.
template <class T>
void lookup_rows(const CpuStream& stream, MatrixView<const T> weight, Range range, VectorView<const std::int32_t> ids,
                 MatrixView<T> output);
template <class T>
void lookup_rows(const CudaStream& stream, MatrixView<const T> weight, Range range, VectorView<const std::int32_t> ids,
                 MatrixView<T> output);

/// d_weight row ids[t] - first_id += row t of d_output, for every t in tokens, each id's in the order of `tokens`.
/// `tokens` and `begins` are EmbeddingRuns on the stream's device.
template <class T>
void accumulate_rows(const CpuStream& stream, MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                     VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                     std::int64_t first_id, MatrixView<float> d_weight);
template <class T>
void accumulate_rows(const CudaStream& stream, MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                     VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                     std::int64_t first_id, MatrixView<float> d_weight);

template <class T>
void lookup_rows(const Stream& stream, MatrixView<const T> weight, Range range, VectorView<const std::int32_t> ids,
                 MatrixView<T> output) {
  stream.visit([&](const auto& device) { lookup_rows<T>(device, weight, range, ids, output); });
}
template <class T>
void accumulate_rows(const Stream& stream, MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                     VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                     std::int64_t first_id, MatrixView<float> d_weight) {
  stream.visit(
      [&](const auto& device) { accumulate_rows<T>(device, d_output, ids, tokens, begins, first_id, d_weight); });
}

}  // namespace reprise
