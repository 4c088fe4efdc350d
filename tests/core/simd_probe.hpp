#pragma once

#include "core/simd_dispatch.hpp"

namespace reprise {

/// Functions of core/simd.hpp by number, so that a test can call them at every level.
enum class SimdFunction : int { kExp, kLog, kTanh, kSigmoid, kSqrt };

REPRISE_SIMD_DECLARE(void probe_unary(int function, const float* x, float* y, std::int64_t size))
REPRISE_SIMD_DECLARE(void probe_atan2(const float* y, const float* x, float* angle, std::int64_t size))
// results: sum, maximum, minimum of the first `size` values (partial loads fill with 0, -inf, inf)
REPRISE_SIMD_DECLARE(void probe_reduce(const float* x, std::int64_t size, float* results))
REPRISE_SIMD_DECLARE(void probe_max_min(const float* a, const float* b, float* larger, float* smaller))
REPRISE_SIMD_DECLARE(double probe_dot(const float* a, const float* b, std::int64_t size))
// results: any and all of x > 0 over one vector, then any and all of is_finite, then of is_nan
REPRISE_SIMD_DECLARE(void probe_masks(const float* x, int* results))
REPRISE_SIMD_DECLARE(std::int64_t probe_width())

}  // namespace reprise
