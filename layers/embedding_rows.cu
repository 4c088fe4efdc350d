#include "core/cuda/launch.hpp"
#include "layers/embedding_rows.hpp"
#include "layers/row_packs.cuh"

namespace reprise {

namespace {

constexpr int kThreads = 128;
constexpr std::int64_t kBlockCols = std::int64_t{kThreads} * kRowPack;
constexpr int kRowsAhead = 4;  // loads on their way at once, so that a frequent id is not a chain of latencies

/// A block for a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
    lookup_rows_kernel(MatrixView<const T> weight, std::int64_t begin, std::int64_t end,
                       VectorView<const std::int32_t> ids, MatrixView<T> output, bool is_whole) {
  const std::int64_t id = ids[blockIdx.x];
  const bool is_ours = begin <= id && id < end;
  const T* const from = is_ours ? weight.row(id - begin).data : nullptr;
  T* const to = output.row(blockIdx.x).data;
  const T none = from_float<T>(0.0f);
  if (is_whole) {
    constexpr int kPack = kPackSize<T>;
    for (std::int64_t col = std::int64_t{threadIdx.x} * kPack; col < output.cols; col += kThreads * kPack) {
      Pack<T, kPack> values;
      for (int i = 0; i < kPack; ++i) values[i] = none;
      if (is_ours) values = load_pack<kPack>(from, col);
      store_pack(to, col, values);
    }
  } else {
    for (std::int64_t col = threadIdx.x; col < output.cols; col += kThreads) to[col] = is_ours ? from[col] : none;
  }
}

/// Blocks: an id in x, kBlockCols of its columns in y.
template <class T>
__global__ void __launch_bounds__(kThreads)
    accumulate_rows_kernel(MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                           VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                           std::int64_t first_id, MatrixView<float> d_weight, bool is_whole) {
  const std::int64_t cols = d_weight.cols;
  const std::int64_t col = blockIdx.y * kBlockCols + static_cast<std::int64_t>(threadIdx.x) * kRowPack;
  if (col >= cols) return;
  int i = begins[blockIdx.x];
  const int end = begins[blockIdx.x + 1];
  const std::int64_t weight_row = ids[tokens[i]] - first_id;
  device_check(weight_row >= 0 && weight_row < d_weight.rows, "an id lies outside the range of this rank");
  float* const row = d_weight.row(weight_row).data;
  RowPack sum = load_row(row, col, cols, is_whole);
  for (; i + kRowsAhead <= end; i += kRowsAhead) {
    RowPack addends[kRowsAhead];
#pragma unroll
    for (int k = 0; k < kRowsAhead; ++k) addends[k] = load_row(d_output.row(tokens[i + k]).data, col, cols, is_whole);
#pragma unroll
    for (int k = 0; k < kRowsAhead; ++k) {
#pragma unroll
      for (int c = 0; c < kRowPack; ++c) sum[c] += addends[k][c];
    }
  }
  for (; i < end; ++i) {
    const RowPack addend = load_row(d_output.row(tokens[i]).data, col, cols, is_whole);
#pragma unroll
    for (int c = 0; c < kRowPack; ++c) sum[c] += addend[c];
  }
  store_row(row, col, cols, is_whole, sum);
}

}  // namespace

template <class T>
void lookup_rows(const CudaStream& stream, MatrixView<const T> weight, Range range, VectorView<const std::int32_t> ids,
                 MatrixView<T> output) {
  REPRISE_CUDA_CHECK(output.rows == ids.size && output.cols == weight.cols && weight.rows == range.size(),
                     "lookup_rows: ", ids.size, " ids of [", range.begin, ", ", range.end, ") in weight [", weight.rows,
                     ", ", weight.cols, "] to [", output.rows, ", ", output.cols, "]");
  const bool is_whole = has_whole_packs(weight.data, weight.cols) && has_whole_packs(output.data, weight.cols);
  launch(stream, {"lookup_rows", blocks_for(ids.size, 1), kThreads}, lookup_rows_kernel<T>, weight, range.begin,
         range.end, ids, output, is_whole);
}

template <class T>
void accumulate_rows(const CudaStream& stream, MatrixView<const T> d_output, VectorView<const std::int32_t> ids,
                     VectorView<const std::int32_t> tokens, VectorView<const std::int32_t> begins,
                     std::int64_t first_id, MatrixView<float> d_weight) {
  REPRISE_CUDA_CHECK(d_output.rows == ids.size && d_output.cols == d_weight.cols, "accumulate_rows: gradient [",
                     d_output.rows, ", ", d_output.cols, "] of ", ids.size, " ids to [", d_weight.rows, ", ",
                     d_weight.cols, "]");
  const dim3 grid(blocks_for(begins.size - 1, 1), blocks_for(d_weight.cols, kBlockCols));
  const bool is_whole = has_whole_packs(d_output.data, d_output.cols) && has_whole_packs(d_weight.data, d_weight.cols);
  launch(stream, {"accumulate_rows", grid, kThreads}, accumulate_rows_kernel<T>, d_output, ids, tokens, begins,
         first_id, d_weight, is_whole);
}

#define REPRISE_INSTANTIATE(T)                                                                                   \
  template void lookup_rows<T>(const CudaStream&, MatrixView<const T>, Range, VectorView<const std::int32_t>,    \
                               MatrixView<T>);                                                                   \
  template void accumulate_rows<T>(const CudaStream&, MatrixView<const T>, VectorView<const std::int32_t>,       \
                                   VectorView<const std::int32_t>, VectorView<const std::int32_t>, std::int64_t, \
                                   MatrixView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
