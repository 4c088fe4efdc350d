#pragma once

#include "core/simd_dispatch.hpp"

namespace reprise {

// The kernels of elementwise_simd.cpp for one thread; std::uint16_t is bfloat16 storage.
REPRISE_SIMD_DECLARE(void scale_array(float factor, float* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void scale_array(float factor, std::uint16_t* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void add_array(const float* x, float* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void add_array(const float* x, std::uint16_t* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void add_array(const std::uint16_t* x, float* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void add_array(const std::uint16_t* x, std::uint16_t* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void cast_array(const float* x, std::uint16_t* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void cast_array(const std::uint16_t* x, float* y, std::int64_t size))

/// What a kernel of a _simd.cpp takes for an array of T.
inline float* simd_pointer(float* pointer) {
  return pointer;
}
inline const float* simd_pointer(const float* pointer) {
  return pointer;
}
inline std::uint16_t* simd_pointer(BFloat16* pointer) {
  return reinterpret_cast<std::uint16_t*>(pointer);
}
inline const std::uint16_t* simd_pointer(const BFloat16* pointer) {
  return reinterpret_cast<const std::uint16_t*>(pointer);
}

}  // namespace reprise
