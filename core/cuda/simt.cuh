#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/cuda/ptx.cuh"
#include "core/dtype.hpp"

namespace reprise {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffU;

__device__ inline int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
__device__ inline int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarpSize;
}
/// Of a one-dimensional grid of one-dimensional blocks.
__device__ inline std::int64_t global_thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t global_thread_count() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

constexpr std::size_t kSharedAlignment = 16;
/// Bytes that SharedMemory::take<T>(count) uses; the launch asks for the sum of its kernel's.
template <class T>
constexpr std::size_t shared_bytes(std::int64_t count) {
  return (static_cast<std::size_t>(count) * sizeof(T) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

/// Carves the block's dynamic shared memory into arrays, in the same order in every thread. All shared memory is taken
/// from here, never declared with __shared__, so that the emulation can own and poison it.
///   SharedMemory shared;
///   float* const partial = shared.take<float>(32);
class SharedMemory {
 public:
  template <class T>
  __device__ T* take(std::int64_t count) {
    auto* const array = reinterpret_cast<T*>(dynamic_shared_memory() + used_);
    used_ += shared_bytes<T>(count);
    device_check(used_ <= dynamic_shared_bytes(), "takes more shared memory than its launch asked for");
    return array;
  }

 private:
  std::size_t used_ = 0;
};

/// kCount neighbours of an array, moved as one aligned word of memory.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};
/// Elements of T in 16 bytes, the widest load.
template <class T>
constexpr int kPackSize = static_cast<int>(16 / sizeof(T));
/// The elements of [index, index + kCount) at `array`, whose address is a multiple of the pack's size.
template <int kCount, class T>
__device__ inline Pack<T, kCount> load_pack(const T* array, std::int64_t index) {
  return *reinterpret_cast<const Pack<T, kCount>*>(array + index);
}
template <class T, int kCount>
__device__ inline void store_pack(T* array, std::int64_t index, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(array + index) = pack;
}

__device__ inline float to_float(float value) {
  return value;
}
__device__ inline float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
/// Rounds to nearest even.
template <class T>
__device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    BFloat16 rounded;
    rounded.bits = static_cast<std::uint16_t>(pack_bfloat16(value, 0.0f));
    return rounded;
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace reprise
