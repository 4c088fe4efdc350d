// The twins of core/cuda/ptx.cuh: what each instruction does, as loops.
#pragma once

#include <cuda_device.h>

#include <array>
#include <cmath>
#include <cstring>

#include "core/dtype.hpp"

namespace reprise {

inline unsigned char* dynamic_shared_memory() {
  return cuda_emulation::current_launch->shared;
}
inline unsigned dynamic_shared_bytes() {
  return static_cast<unsigned>(cuda_emulation::current_launch->shared_bytes);
}
inline void device_check(bool condition, const char* what) {
  if (!condition) cuda_emulation::fault(what);
}

template <int kBytes>
void copy_async(void* shared, const void* global, bool is_valid) {
  cuda_emulation::copy_async(shared, global, kBytes, is_valid ? kBytes : 0);
}
inline void commit_copies() {
  cuda_emulation::commit_async_group();
}
template <int kStillPending>
void wait_for_copies() {
  cuda_emulation::wait_async_groups(kStillPending);
}
inline void barrier_sync(int id, int threads, std::source_location where = std::source_location::current()) {
  cuda_emulation::named_barrier(id, threads, where);
}

inline float bfloat16_bits_to_float(unsigned bits) {
  return std::bit_cast<float>(bits << 16);
}

inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                         std::source_location where = std::source_location::current()) {
  struct Operands {
    std::array<unsigned, 4> a;
    std::array<unsigned, 2> b;
  };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto lanes = cuda_emulation::exchange(0xffffffffU, mine, "mma_m16n8k16", where);
  const int lane = cuda_emulation::current_thread->lane(), group = lane / 4, pair = lane % 4;
  const auto half = [](unsigned word, int upper) {
    return bfloat16_bits_to_float(upper != 0 ? word >> 16 : word & 0xffffU);
  };
  const auto element_of_a = [&](int row, int k) {  // [16, 16]
    const auto& words = lanes[row % 8 * 4 + k % 8 / 2].a;
    return half(words[static_cast<std::size_t>(row / 8 + 2 * (k / 8))], k % 2);
  };
  const auto element_of_b = [&](int k, int col) {  // [16, 8]
    const auto& words = lanes[col * 4 + k % 8 / 2].b;
    return half(words[static_cast<std::size_t>(k / 8)], k % 2);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = group + 8 * (i / 2), col = 2 * pair + i % 2;
    for (int k = 0; k < 16; ++k) d[i] += element_of_a(row, k) * element_of_b(k, col);
  }
}

template <int kMatrices, bool kTransposed>
void load_matrices(unsigned (&words)[kMatrices], const void* row,
                   std::source_location where = std::source_location::current()) {
  const auto lanes = cuda_emulation::exchange(0xffffffffU, row, "load_matrices", where);
  const int lane = cuda_emulation::current_thread->lane();
  for (int m = 0; m < kMatrices; ++m) {
    const auto element = [&](int r, int c) {
      const auto* const halves = static_cast<const unsigned char*>(lanes[8 * m + r]);
      if (reinterpret_cast<std::uintptr_t>(halves) % 16 != 0)
        cuda_emulation::fault("load_matrices: a row is not 16-byte aligned");
      std::uint16_t value = 0;
      std::memcpy(&value, halves + 2 * c, sizeof value);
      return static_cast<unsigned>(value);
    };
    const int major = lane / 4, minor = lane % 4 * 2;
    words[m] = kTransposed ? element(minor, major) | element(minor + 1, major) << 16
                           : element(major, minor) | element(major, minor + 1) << 16;
  }
}

inline unsigned pack_bfloat16(float low, float high) {
  return static_cast<unsigned>(BFloat16(low).bits) | static_cast<unsigned>(BFloat16(high).bits) << 16;
}

inline float exp2_approximate(float x) {
  return x < -126.0f ? 0.0f : std::exp2(x);
}

}  // namespace reprise
