#include "bench/gpu/ceilings.hpp"
#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"

namespace reprise {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    read_rows_kernel(MatrixView<const BFloat16> table, VectorView<const std::int32_t> rows, std::int64_t per_block,
                     VectorView<float> sums) {
  SharedMemory shared;
  auto* const scratch = shared.take<float>(kThreads / kWarpSize);
  const std::int64_t begin = blockIdx.x * per_block;
  const std::int64_t end = begin + per_block < rows.size ? begin + per_block : rows.size;
  constexpr int kPack = kPackSize<BFloat16>;
  float sum = 0.0f;
  for (std::int64_t i = begin; i < end; ++i) {
    const BFloat16* const row = table.row(rows[i]).data;
    for (std::int64_t c = threadIdx.x * kPack; c < table.cols; c += kThreads * kPack) {
      const auto pack = load_pack<kPack>(row, c);
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum += to_float(pack[j]);
    }
  }
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    update_rows_kernel(MatrixView<float> table, VectorView<const std::int32_t> rows) {
  float* const row = table.row(rows[blockIdx.x]).data;
  constexpr int kPack = kPackSize<float>;
  for (std::int64_t c = threadIdx.x * kPack; c < table.cols; c += kThreads * kPack) {
    auto pack = load_pack<kPack>(static_cast<const float*>(row), c);
#pragma unroll
    for (int j = 0; j < kPack; ++j) pack[j] += 1.0f;
    store_pack(row, c, pack);
  }
}

}  // namespace

void read_listed_rows(const CudaStream& stream, MatrixView<const BFloat16> table, VectorView<const std::int32_t> rows,
                      std::int64_t per_block, VectorView<float> sums) {
  REPRISE_CUDA_CHECK(table.cols % kPackSize<BFloat16> == 0, "read_listed_rows: ", table.cols, " columns");
  launch(stream,
         {"read_listed_rows", blocks_for(rows.size, per_block), kThreads, shared_bytes<float>(kThreads / kWarpSize)},
         read_rows_kernel, table, rows, per_block, sums);
}

void update_listed_rows(const CudaStream& stream, MatrixView<float> table, VectorView<const std::int32_t> rows) {
  REPRISE_CUDA_CHECK(table.cols % kPackSize<float> == 0, "update_listed_rows: ", table.cols, " columns");
  launch(stream, {"update_listed_rows", blocks_for(rows.size, 1), kThreads}, update_rows_kernel, table, rows);
}

}  // namespace reprise
