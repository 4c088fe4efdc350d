// What device code may name without including anything: coordinates, barriers, warp collectives, intrinsics.
#pragma once

#include <cuda_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "tests/support/cuda_emulation/block.hpp"

constexpr int warpSize = 32;

namespace cuda_emulation {

using Where = std::source_location;

/// Every lane's value, after all lanes of the mask have brought theirs.
template <class T>
struct Lanes {
  const unsigned char* values;
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, values + static_cast<std::size_t>(lane) * kLaneBytes, sizeof(T));
    return value;
  }
};

template <class T>
Lanes<T> exchange(unsigned mask, const T& value, const char* what, Where where) {
  return {warp_exchange(mask, &value, sizeof(T), what, where)};
}

/// A shuffle's source lane must take part in it, else its value is undefined.
template <class T>
T from_lane(const Lanes<T>& lanes, unsigned mask, int lane, const char* what) {
  if ((mask >> lane & 1U) == 0) fault(std::string(what) + " reads lane " + std::to_string(lane) + ", outside the mask");
  return lanes[lane];
}

template <class T, class Combine>
T combine(unsigned mask, T value, const char* what, Where where, const Combine& combine) {
  const Lanes<T> lanes = exchange(mask, value, what, where);
  T total{};
  bool is_first = true;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1U) == 0) continue;
    total = is_first ? lanes[lane] : combine(total, lanes[lane]);
    is_first = false;
  }
  return total;
}

inline int vote_of_block(int predicate, Where where) {
  // Two barriers around a count in a place of the block's own.
  static thread_local int count;
  block_barrier(where);
  if (current_thread->number == 0) count = 0;
  block_barrier(where);
  if (predicate != 0) ++count;
  block_barrier(where);
  const int result = count;
  block_barrier(where);
  return result;
}

}  // namespace cuda_emulation

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  cuda_emulation::block_barrier(where);
}
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
  return cuda_emulation::vote_of_block(predicate, where);
}
inline int __syncthreads_or(int predicate, std::source_location where = std::source_location::current()) {
  return cuda_emulation::vote_of_block(predicate, where) > 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, std::source_location where = std::source_location::current()) {
  return cuda_emulation::vote_of_block(predicate == 0 ? 1 : 0, where) == 0 ? 1 : 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffU, std::source_location where = std::source_location::current()) {
  cuda_emulation::warp_exchange(mask, nullptr, 0, "__syncwarp", where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  const int lane = cuda_emulation::current_thread->lane();
  const auto lanes = cuda_emulation::exchange(mask, value, "__shfl_sync", where);
  return cuda_emulation::from_lane(lanes, mask, lane / width * width + (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  std::source_location where = std::source_location::current()) {
  const int lane = cuda_emulation::current_thread->lane(), source = lane ^ lane_mask;
  const auto lanes = cuda_emulation::exchange(mask, value, "__shfl_xor_sync", where);
  return source / width > lane / width ? value : cuda_emulation::from_lane(lanes, mask, source, "__shfl_xor_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
  const int lane = cuda_emulation::current_thread->lane(), source = lane - static_cast<int>(delta);
  const auto lanes = cuda_emulation::exchange(mask, value, "__shfl_up_sync", where);
  return source < lane / width * width ? value : cuda_emulation::from_lane(lanes, mask, source, "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  const int lane = cuda_emulation::current_thread->lane(), source = lane + static_cast<int>(delta);
  const auto lanes = cuda_emulation::exchange(mask, value, "__shfl_down_sync", where);
  return source >= (lane / width + 1) * width ? value
                                              : cuda_emulation::from_lane(lanes, mask, source, "__shfl_down_sync");
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  const unsigned bit = predicate != 0 ? 1U << cuda_emulation::current_thread->lane() : 0U;
  return cuda_emulation::combine(mask, bit, "__ballot_sync", where, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, predicate, where) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, predicate, where) == mask ? 1 : 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, std::source_location where = std::source_location::current()) {
  const auto lanes = cuda_emulation::exchange(mask, value, "__match_any_sync", where);
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1U) != 0 && lanes[lane] == value) same |= 1U << lane;
  }
  return same;
}

#define CUDA_EMULATION_REDUCE(name, T, expression)                                                                  \
  inline T name(unsigned mask, T value, std::source_location where = std::source_location::current()) {             \
    return cuda_emulation::combine(mask, value, #name, where, [](T a, T b) { return static_cast<T>(expression); }); \
  }
CUDA_EMULATION_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDA_EMULATION_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDA_EMULATION_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDA_EMULATION_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDA_EMULATION_REDUCE(__reduce_and_sync, unsigned, a& b)
CUDA_EMULATION_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
CUDA_EMULATION_REDUCE(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDA_EMULATION_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDA_EMULATION_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef CUDA_EMULATION_REDUCE

// Blocks run one after another and threads in turn, so a plain read-modify-write is atomic.
#define CUDA_EMULATION_ATOMIC(name, T, expression) \
  inline T name(T* address, T value) {             \
    const T old = *address;                        \
    *address = static_cast<T>(expression);         \
    return old;                                    \
  }
#define CUDA_EMULATION_ATOMICS(T)                                \
  CUDA_EMULATION_ATOMIC(atomicAdd, T, old + value)               \
  CUDA_EMULATION_ATOMIC(atomicMin, T, old < value ? old : value) \
  CUDA_EMULATION_ATOMIC(atomicMax, T, old > value ? old : value) \
  CUDA_EMULATION_ATOMIC(atomicOr, T, old | value)                \
  CUDA_EMULATION_ATOMIC(atomicAnd, T, old& value)                \
  CUDA_EMULATION_ATOMIC(atomicExch, T, value)                    \
  inline T atomicCAS(T* address, T compare, T value) {           \
    const T old = *address;                                      \
    if (old == compare) *address = value;                        \
    return old;                                                  \
  }
CUDA_EMULATION_ATOMICS(int)
CUDA_EMULATION_ATOMICS(unsigned)
CUDA_EMULATION_ATOMICS(unsigned long long)
#undef CUDA_EMULATION_ATOMICS
#undef CUDA_EMULATION_ATOMIC

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() {
  cuda_emulation::fault("__trap");
}

inline float __expf(float x) {
  return std::exp(x);
}
inline float __exp2f(float x) {
  return std::exp2(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __log2f(float x) {
  return std::log2(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline double __fma_rn(double x, double y, double z) {
  return std::fma(x, y, z);
}
inline float __saturatef(float x) {
  return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(static_cast<double>(x) * 3.14159265358979323846));
  *cosine = static_cast<float>(std::cos(static_cast<double>(x) * 3.14159265358979323846));
}

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline int __ffsll(long long x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(x) * y >> 32);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(x) * y >> 64);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7U)) & 0xffU) << (8 * i);
  }
  return result;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}

#define CUDA_EMULATION_MIN_MAX(T) \
  constexpr T min(T a, T b) {     \
    return b < a ? b : a;         \
  }                               \
  constexpr T max(T a, T b) {     \
    return a < b ? b : a;         \
  }
CUDA_EMULATION_MIN_MAX(int)
CUDA_EMULATION_MIN_MAX(unsigned)
CUDA_EMULATION_MIN_MAX(long)
CUDA_EMULATION_MIN_MAX(unsigned long)
CUDA_EMULATION_MIN_MAX(long long)
CUDA_EMULATION_MIN_MAX(unsigned long long)
#undef CUDA_EMULATION_MIN_MAX
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}
