#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "launcher/arg_max.hpp"

// Greedy generation reads logits that a product has just left in the L2 cache: 4 bytes an element, nothing else. One
// block a row of many threads, because there are as few rows as documents.

namespace reprise {
namespace {

constexpr int kThreads = 1024;
constexpr int kElements = 4;  // of one load

/// Greater is better: values ascending, then columns descending. 0 is worse than any element.
using Rank = unsigned long long;

__device__ Rank rank_of(float value, std::int64_t col) {
  if (value != value) value = __int_as_float(0x7f800000);
  const unsigned bits = __float_as_uint(value + 0.0f);  // -0 becomes +0
  const unsigned ascending = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<Rank>(ascending) << 32 | (0xffffffffU - static_cast<unsigned>(col));
}

__device__ ArgMax element_of(Rank rank) {
  if (rank == 0) return {__int_as_float(static_cast<int>(0xff800000U)), -1};
  const unsigned ascending = static_cast<unsigned>(rank >> 32);
  const unsigned bits = (ascending & 0x80000000U) != 0 ? ascending & 0x7fffffffU : ~ascending;
  return {__uint_as_float(bits), static_cast<std::int32_t>(0xffffffffU - static_cast<unsigned>(rank))};
}

__device__ Rank best_of_warp(Rank rank) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const Rank other = __shfl_xor_sync(kAllLanes, rank, distance);
    rank = other > rank ? other : rank;
  }
  return rank;
}

__global__ void __launch_bounds__(kThreads) arg_max_kernel(MatrixView<const float> rows, VectorView<ArgMax> best) {
  SharedMemory shared;
  Rank* const of_warps = shared.take<Rank>(kThreads / kWarpSize);
  const float* const row = rows.data + blockIdx.x * rows.cols;
  const auto thread = static_cast<std::int64_t>(threadIdx.x);
  const auto take = [](Rank& rank, float value, std::int64_t col) {
    const Rank other = rank_of(value, col);
    rank = other > rank ? other : rank;
  };
  Rank rank = 0;
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(row) % (sizeof(float) * kElements) == 0;
  const std::int64_t packed = is_aligned ? rows.cols / kElements * kElements : 0;
  for (std::int64_t col = thread * kElements; col < packed; col += std::int64_t{kThreads} * kElements) {
    const Pack<float, kElements> values = load_pack<kElements>(row, col);
    for (int i = 0; i < kElements; ++i) take(rank, values[i], col + i);
  }
  for (std::int64_t col = packed + thread; col < rows.cols; col += kThreads) take(rank, row[col], col);

  rank = best_of_warp(rank);
  if (lane_index() == 0) of_warps[warp_index()] = rank;
  __syncthreads();
  if (warp_index() == 0) {
    rank = best_of_warp(of_warps[lane_index()]);
    if (lane_index() == 0) best[blockIdx.x] = element_of(rank);
  }
}

}  // namespace

void arg_max_rows(const CudaStream& stream, MatrixView<const float> rows, VectorView<ArgMax> best) {
  static_assert(kThreads / kWarpSize == kWarpSize);
  REPRISE_CUDA_CHECK(best.size == rows.rows, best.size, " results for ", rows.rows, " rows");
  launch(stream, {"arg_max_rows", blocks_for(rows.rows, 1), kThreads, shared_bytes<Rank>(kThreads / kWarpSize)},
         arg_max_kernel, rows, best);
}

}  // namespace reprise
