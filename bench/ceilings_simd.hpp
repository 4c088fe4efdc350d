#pragma once

#include <cstdint>

#include "core/simd_dispatch.hpp"

namespace reprise {

/// Fused multiply-adds in registers alone: `rounds` times 16 independent vectors. Returns something that depends on
/// all.
REPRISE_SIMD_DECLARE(float multiply_add_loop(std::int64_t rounds))
/// Multiply-adds of one round.
inline constexpr std::int64_t kMultiplyAddsPerRound = 16;  // times the vector width
REPRISE_SIMD_DECLARE(std::int64_t vector_width())

/// Reads a row once, as bytes.
REPRISE_SIMD_DECLARE(float read_row(const void* row, std::int64_t bytes))
/// Reads and writes a row once.
REPRISE_SIMD_DECLARE(void update_row(float* row, std::int64_t size))

}  // namespace reprise
