#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "layers/column_sum.cuh"

namespace reprise {

namespace {

constexpr int kWarps = 32, kThreads = kWarps * kWarpSize;

/// A block for 32 columns. Warp w adds the rows w, w + 32, ...; then the warps' sums are added in their order.
__global__ void __launch_bounds__(kThreads)
    add_partial_rows_kernel(MatrixView<const float> partials, VectorView<float> total) {
  SharedMemory shared;
  float* const sums = shared.take<float>(kThreads);
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + lane_index();
  float sum = 0.0f;
  if (col < total.size) {
#pragma unroll 8
    for (std::int64_t row = warp_index(); row < partials.rows; row += kWarps) sum += partials(row, col);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() > 0 || col >= total.size) return;
  sum = total[col];
  for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * kWarpSize + lane_index()];
  total[col] = sum;
}

}  // namespace

void add_partial_rows(const CudaStream& stream, MatrixView<const float> partials, VectorView<float> total) {
  REPRISE_CUDA_CHECK(partials.cols == total.size, "add_partial_rows: ", partials.cols, " columns into ", total.size);
  if (partials.rows == 0) return;
  launch(stream, {"add_partial_rows", blocks_for(total.size, kWarpSize), kThreads, shared_bytes<float>(kThreads)},
         add_partial_rows_kernel, partials, total);
}

}  // namespace reprise
