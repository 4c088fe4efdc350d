#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "tests/cuda_emulation/emulation_kernels.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 128, kStages = 3;

__global__ void row_sums_kernel(MatrixView<const float> x, VectorView<float> sums, Mistake mistake) {
  SharedMemory shared;
  float* const partial = shared.take<float>(kThreads / kWarpSize);
  const std::int64_t row = blockIdx.x;
  float sum = 0.0f;
  for (std::int64_t i = threadIdx.x; i < x.cols; i += kThreads) sum += x(row, i);
  sum = warp_sum(sum);
  if (lane_index() == 0) partial[warp_index()] = sum;
  if (mistake != Mistake::kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (int w = 0; w < kThreads / kWarpSize; ++w) total += partial[w];
    sums[row] = total;
  }
}

/// Chunks of kThreads * 4 floats go through a ring of kStages; thread i copies element group i and reads group i + 1.
__global__ void ring_row_sums_kernel(MatrixView<const float> x, VectorView<float> sums, Mistake mistake) {
  SharedMemory shared;
  float* const ring = shared.take<float>(std::int64_t{kStages} * kThreads * 4);
  float* const scratch = shared.take<float>(kThreads / kWarpSize);
  const float* const row = x.row(blockIdx.x).data;
  const std::int64_t chunks = (x.cols + kThreads * 4 - 1) / (kThreads * 4);
  const auto fetch = [&](std::int64_t chunk) {
    if (chunk < chunks) {
      const std::int64_t at = (chunk * kThreads + threadIdx.x) * 4;
      float* const slot = ring + (chunk % kStages * kThreads + threadIdx.x) * 4;
      copy_async<16>(slot, at < x.cols ? row + at : row, at < x.cols);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  float sum = 0.0f;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (mistake == Mistake::kLateCopyWait) {
      wait_for_copies<kStages - 1>();
    } else if (mistake != Mistake::kNoCopyWait) {
      wait_for_copies<kStages - 2>();
    }
    if (mistake != Mistake::kNoBarrierAfterCopy) __syncthreads();
    const unsigned neighbour = (threadIdx.x + 1) % kThreads;
    const float* const slot = ring + (chunk % kStages * kThreads + neighbour) * 4;
    for (int i = 0; i < 4; ++i) sum += slot[i];
    if (mistake == Mistake::kNoReuseBarrier) {
      fetch(chunk + kStages);  // the stage that others read now
    } else {
      fetch(chunk + kStages - 1);  // the stage of the chunk before, read by all before the barrier above
    }
  }
  wait_for_copies<0>();
  sum = block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x >= kThreads / 2) return;
  __syncthreads();
}

__global__ void divergent_shuffle_kernel(VectorView<float> out) {
  const auto value = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, value, 1);
  } else {
    out[threadIdx.x] = __shfl_down_sync(kAllLanes, value, 1);
  }
}

__global__ void write_one_kernel(VectorView<float> y, std::int64_t index) {
  if (threadIdx.x == 0) y[index] = 1.0f;
}

__global__ void run_order_kernel(VectorView<std::int32_t> order, VectorView<std::int32_t> counter) {
  order[global_thread_index()] = counter[0]++;
}

__global__ void take_shared_kernel(std::int64_t count, VectorView<float> out) {
  SharedMemory shared;
  const float* const values = shared.take<float>(count);
  if (threadIdx.x == 0) out[0] = values[count - 1];
}

__global__ void write_through_table_kernel(VectorView<float* const> table, float value) {
  if (threadIdx.x == 0) table[0][0] = value;
}

}  // namespace

void row_sums(const CudaStream& stream, MatrixView<const float> x, VectorView<float> sums, Mistake mistake) {
  launch(stream, {"row_sums", blocks_for(x.rows, 1), kThreads, kBlockReduceBytes<float, kThreads>}, row_sums_kernel, x,
         sums, mistake);
}

void ring_row_sums(const CudaStream& stream, MatrixView<const float> x, VectorView<float> sums, Mistake mistake) {
  const std::size_t bytes =
      shared_bytes<float>(std::int64_t{kStages} * kThreads * 4) + kBlockReduceBytes<float, kThreads>;
  launch(stream, {"ring_row_sums", blocks_for(x.rows, 1), kThreads, bytes}, ring_row_sums_kernel, x, sums, mistake);
}

void divergent_barrier(const CudaStream& stream) {
  launch(stream, {"divergent_barrier", 1, kThreads}, divergent_barrier_kernel);
}
void divergent_shuffle(const CudaStream& stream, VectorView<float> out) {
  launch(stream, {"divergent_shuffle", 1, kWarpSize}, divergent_shuffle_kernel, out);
}
void write_one(const CudaStream& stream, VectorView<float> y, std::int64_t index) {
  launch(stream, {"write_one", 1, kWarpSize}, write_one_kernel, y, index);
}
void run_order(const CudaStream& stream, VectorView<std::int32_t> order, VectorView<std::int32_t> counter) {
  launch(stream, {"run_order", blocks_for(order.size, kWarpSize), kWarpSize}, run_order_kernel, order, counter);
}
void take_shared(const CudaStream& stream, std::int64_t asked, std::int64_t taken, VectorView<float> out) {
  launch(stream, {"take_shared", 1, kWarpSize, shared_bytes<float>(asked)}, take_shared_kernel, taken, out);
}
void write_through_table(const CudaStream& stream, VectorView<float* const> table, float value) {
  launch(stream, {"write_through_table", 1, kWarpSize}, write_through_table_kernel, table, value);
}

}  // namespace reprise
