#include "core/cuda/launch.hpp"
#include "layers/bias.hpp"
#include "layers/column_sum.cuh"
#include "layers/row_packs.cuh"

namespace reprise {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr std::int64_t kAddCols = std::int64_t{kThreads} * kRowPack;
constexpr int kSumCols = kWarpSize * kRowPack;
constexpr std::int64_t kSumRows = 128;  // of a block: 16 of each warp

/// Blocks: a row in x, kAddCols of its columns in y.
template <class T>
__global__ void __launch_bounds__(kThreads) add_bias_kernel(VectorView<const T> bias, MatrixView<T> y, bool is_whole) {
  const std::int64_t col = blockIdx.y * kAddCols + static_cast<std::int64_t>(threadIdx.x) * kRowPack;
  if (col >= y.cols) return;
  T* const row = y.row(blockIdx.x).data;
  RowPack values = load_row(row, col, y.cols, is_whole);
  const RowPack addends = load_row(bias.data, col, y.cols, is_whole);
#pragma unroll
  for (int i = 0; i < kRowPack; ++i) values[i] += addends[i];
  store_row(row, col, y.cols, is_whole, values);
}

/// Blocks: kSumRows rows in x, kSumCols columns in y. Warp w adds rows w, w + 8, ...; then the warps are added in
/// order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bias_partial_kernel(MatrixView<const T> d_y, MatrixView<float> partials, bool is_whole) {
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarps * kSumCols);
  const std::int64_t first_col = static_cast<std::int64_t>(blockIdx.y) * kSumCols;
  const std::int64_t first_row = blockIdx.x * kSumRows, end = min(first_row + kSumRows, d_y.rows);
  const std::int64_t col = first_col + lane_index() * kRowPack;
  RowPack sum;
#pragma unroll
  for (int i = 0; i < kRowPack; ++i) sum[i] = 0.0f;
  if (col < d_y.cols) {
#pragma unroll 4
    for (std::int64_t row = first_row + warp_index(); row < end; row += kWarps) {
      const RowPack values = load_row(d_y.row(row).data, col, d_y.cols, is_whole);
#pragma unroll
      for (int i = 0; i < kRowPack; ++i) sum[i] += values[i];
    }
  }
  store_pack(sums + warp_index() * kSumCols, lane_index() * kRowPack, sum);
  __syncthreads();
  const std::int64_t own = first_col + threadIdx.x;
  if (own >= d_y.cols) return;
  float total = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp * kSumCols + threadIdx.x];
  partials(blockIdx.x, own) = total;
}

}  // namespace

template <class T>
void add_bias(const CudaStream& stream, VectorView<const T> bias, MatrixView<T> y) {
  REPRISE_CUDA_CHECK(bias.size == y.cols, "add_bias: bias of ", bias.size, " for rows of ", y.cols);
  const dim3 grid(blocks_for(y.rows, 1), blocks_for(y.cols, kAddCols));
  const bool is_whole = has_whole_packs(y.data, y.cols) && has_whole_packs(bias.data, 0);
  launch(stream, {"add_bias", grid, kThreads}, add_bias_kernel<T>, bias, y, is_whole);
}

template <class T>
void accumulate_bias_gradient(const CudaStream& stream, Arena& arena, MatrixView<const T> d_y,
                              VectorView<float> d_bias) {
  static_assert(kSumCols == kThreads, "a thread writes the sum of one column");
  REPRISE_CUDA_CHECK(d_bias.size == d_y.cols, "accumulate_bias_gradient: ", d_bias.size, " for rows of ", d_y.cols);
  const Arena::Scope scope(arena);
  const dim3 grid(blocks_for(d_y.rows, kSumRows), blocks_for(d_y.cols, kSumCols));
  const MatrixView<float> partials = arena.matrix<float>(grid.x, d_y.cols, "partial sums of a bias gradient");
  launch(stream, {"bias_partial", grid, kThreads, shared_bytes<float>(kWarps * kSumCols)}, bias_partial_kernel<T>, d_y,
         partials, has_whole_packs(d_y.data, d_y.cols));
  add_partial_rows(stream, partials, d_bias);
}

#define REPRISE_INSTANTIATE(T)                                                      \
  template void add_bias<T>(const CudaStream&, VectorView<const T>, MatrixView<T>); \
  template void accumulate_bias_gradient<T>(const CudaStream&, Arena&, MatrixView<const T>, VectorView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
