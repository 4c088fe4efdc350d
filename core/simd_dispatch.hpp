#pragma once

#include "core/elementwise.hpp"

// Calls a kernel of an x_simd.cpp (compiled once per instruction set) at the level of this process. At namespace scope
// inside `reprise`:
//   REPRISE_SIMD_DECLARE(void add_rows(const float* x, float* y, std::int64_t size))
// and in a function:
//   REPRISE_SIMD_CALL(add_rows, x, y, size);
#if defined(__x86_64__)
#define REPRISE_SIMD_DECLARE(...) \
  namespace portable {            \
  __VA_ARGS__;                    \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__;                    \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__;                    \
  }
#define REPRISE_SIMD_CALL(function, ...)                                                               \
  (::reprise::simd_level() == ::reprise::SimdLevel::kAvx512 ? ::reprise::avx512::function(__VA_ARGS__) \
   : ::reprise::simd_level() == ::reprise::SimdLevel::kAvx2 ? ::reprise::avx2::function(__VA_ARGS__)   \
                                                            : ::reprise::portable::function(__VA_ARGS__))
#else
#define REPRISE_SIMD_DECLARE(...) \
  namespace portable {            \
  __VA_ARGS__;                    \
  }
#define REPRISE_SIMD_CALL(function, ...) (::reprise::portable::function(__VA_ARGS__))
#endif
