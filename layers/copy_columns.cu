#include "core/cuda/launch.hpp"
#include "layers/copy_columns.hpp"
#include "layers/row_packs.cuh"

namespace reprise {

namespace {

constexpr int kThreads = 128;

/// A block for a row of `from`, which goes to row rows[block] of `to`, or to the same one without `rows`.
template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_columns_kernel(MatrixView<const T> from, std::int64_t from_col, const std::int32_t* rows, MatrixView<T> to,
                        std::int64_t to_col, std::int64_t width, bool is_whole) {
  const std::int64_t target_row = rows == nullptr ? static_cast<std::int64_t>(blockIdx.x) : rows[blockIdx.x];
  device_check(target_row >= 0 && target_row < to.rows, "a row to copy to lies outside the matrix");
  const T* const source = from.row(blockIdx.x).data + from_col;
  T* const target = to.row(target_row).data + to_col;
  if (is_whole) {
    constexpr int kPack = kPackSize<T>;
    for (std::int64_t col = std::int64_t{threadIdx.x} * kPack; col < width; col += kThreads * kPack) {
      store_pack(target, col, load_pack<kPack>(source, col));
    }
  } else {
    for (std::int64_t col = threadIdx.x; col < width; col += kThreads) target[col] = source[col];
  }
}

template <class T>
void start_copy(const CudaStream& stream, const char* name, MatrixView<const T> from, std::int64_t from_col,
                const std::int32_t* rows, MatrixView<T> to, std::int64_t to_col, std::int64_t width) {
  const bool is_whole = width % kRowPack == 0 && has_whole_packs(from.data + from_col, from.cols) &&
                        has_whole_packs(to.data + to_col, to.cols);
  launch(stream, {name, blocks_for(width == 0 ? 0 : from.rows, 1), kThreads}, copy_columns_kernel<T>, from, from_col,
         rows, to, to_col, width, is_whole);
}

}  // namespace

template <class T>
void copy_columns(const CudaStream& stream, MatrixView<const T> from, std::int64_t from_col, MatrixView<T> to,
                  std::int64_t to_col, std::int64_t width) {
  REPRISE_CUDA_CHECK(from.rows == to.rows && from_col + width <= from.cols && to_col + width <= to.cols,
                     "copy_columns: [", from_col, ", ", from_col + width, ") of [", from.rows, ", ", from.cols,
                     "] to column ", to_col, " of [", to.rows, ", ", to.cols, "]");
  start_copy<T>(stream, "copy_columns", from, from_col, nullptr, to, to_col, width);
}

template <class T>
void copy_columns_to_rows(const CudaStream& stream, MatrixView<const T> from, std::int64_t from_col,
                          VectorView<const std::int32_t> rows, MatrixView<T> to) {
  REPRISE_CUDA_CHECK(rows.size == from.rows && from_col + to.cols <= from.cols, "copy_columns_to_rows: ", from_col,
                     " + ", to.cols, " of [", from.rows, ", ", from.cols, "] to ", rows.size, " rows");
  start_copy<T>(stream, "copy_columns_to_rows", from, from_col, rows.data, to, 0, to.cols);
}

#define REPRISE_INSTANTIATE(T)                                                                                     \
  template void copy_columns<T>(const CudaStream&, MatrixView<const T>, std::int64_t, MatrixView<T>, std::int64_t, \
                                std::int64_t);                                                                     \
  template void copy_columns_to_rows<T>(const CudaStream&, MatrixView<const T>, std::int64_t,                      \
                                        VectorView<const std::int32_t>, MatrixView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
