#pragma once

#include <cstdint>

#include "core/simd_dispatch.hpp"

namespace reprise {

/// Where `softcap` > 0: z = softcap tanh(z / softcap), in place.
REPRISE_SIMD_DECLARE(void softcap_logits(float* logits, std::int64_t size, float softcap))

/// max = max z, sum_exp = sum exp(z - max); size >= 1. NaN anywhere makes sum_exp NaN.
REPRISE_SIMD_DECLARE(void softmax_statistics(const float* logits, std::int64_t size, float* max, float* sum_exp))

/// z_i = weight (exp(z_i - max) inverse_sum - [i = gold]) dz/dx, in place, where z = softcap tanh(scale x / softcap),
/// or scale x for softcap = 0. gold < 0: not among these logits.
REPRISE_SIMD_DECLARE(void softmax_gradient(float* logits, std::int64_t size, std::int64_t gold, float max,
                                           float inverse_sum, float weight, float scale, float softcap))

/// sum of exp(z_i - max) inverse_sum.
REPRISE_SIMD_DECLARE(float softmax_mass(const float* logits, std::int64_t size, float max, float inverse_sum))

}  // namespace reprise
