#pragma once

#include <cstdint>

#include "core/simd_dispatch.hpp"
#include "loss/head_unit.hpp"

namespace reprise {

/// Logits, running maximum and sum, and the unnormalised gradient of the hidden states, in one visit of the rows.
/// T is float, or std::uint16_t for bfloat16 bits.
REPRISE_SIMD_DECLARE(void head_forward(const HeadUnit<float>& unit))
REPRISE_SIMD_DECLARE(void head_forward(const HeadUnit<std::uint16_t>& unit))

/// logits [rows, tokens] become weight_t exp(z - max_t) inverse_sum_t dz/dx, in place; 0 where weight_t = 0.
REPRISE_SIMD_DECLARE(void head_delta(float* logits, std::int64_t rows, std::int64_t tokens, const float* max,
                                     const float* inverse_sum, const float* weight, float scale, float softcap))

/// x = factor x - gold_factor row, in place; `row` may be null. factor = 0 gives 0 - ..., whatever x held.
REPRISE_SIMD_DECLARE(void finish_d_hidden(float* x, std::int64_t size, float factor, const float* row,
                                          float gold_factor))
REPRISE_SIMD_DECLARE(void finish_d_hidden(float* x, std::int64_t size, float factor, const std::uint16_t* row,
                                          float gold_factor))

}  // namespace reprise
