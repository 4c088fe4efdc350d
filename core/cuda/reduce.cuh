#pragma once

#include "core/cuda/simt.cuh"

namespace reprise {

// Sums and maxima in an order that depends on the shape alone. Every thread gets the result.

template <class T>
__device__ inline T warp_sum(T value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

/// NaN counts as the largest.
__device__ inline float larger_or_nan(float a, float b) {
  return a > b || a != a ? a : b;
}
__device__ inline float warp_max(float value) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = larger_or_nan(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// Shared memory of block_sum and block_max: one T per warp.
template <class T, int kThreads>
constexpr std::size_t kBlockReduceBytes = shared_bytes<T>(kThreads / kWarpSize);

/// Over the kThreads threads of a one-dimensional block; `scratch` holds one T per warp and may be used again at once.
template <int kThreads, class T>
__device__ inline T block_sum(T value, T* scratch) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= kWarpSize * kWarpSize);
  value = warp_sum(value);
  if constexpr (kThreads > kWarpSize) {
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    value = warp_sum(lane_index() < kThreads / kWarpSize ? scratch[lane_index()] : T{});
    __syncthreads();
  }
  return value;
}
template <int kThreads>
__device__ inline float block_max(float value, float* scratch) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= kWarpSize * kWarpSize);
  value = warp_max(value);
  if constexpr (kThreads > kWarpSize) {
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    value = warp_max(scratch[lane_index() % (kThreads / kWarpSize)]);
    __syncthreads();
  }
  return value;
}

}  // namespace reprise
