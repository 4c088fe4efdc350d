#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

std::int64_t vector_width() {
  return kWidth;
}

float multiply_add_loop(std::int64_t rounds) {
  constexpr std::int64_t kChains = 16;
  Float sums[kChains];
  for (std::int64_t i = 0; i < kChains; ++i) sums[i] = broadcast(1.0f + static_cast<float>(i));
  const Float factor = broadcast(0.999f), term = broadcast(0.001f);
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (std::int64_t i = 0; i < kChains; ++i) sums[i] = fma(sums[i], factor, term);
  }
  Float total = zero();
  for (std::int64_t i = 0; i < kChains; ++i) total += sums[i];
  return reduce_add(total);
}

float read_row(const void* row, std::int64_t bytes) {
  constexpr std::int64_t kChains = 4;
  const auto* from = static_cast<const float*>(row);
  const std::int64_t size = bytes / 4;
  Float sums[kChains] = {};
  for (std::int64_t i = 0; i + kChains * kWidth <= size; i += kChains * kWidth) {
    for (std::int64_t v = 0; v < kChains; ++v) sums[v] += load(from + i + v * kWidth);
  }
  return reduce_add(sums[0] + sums[1] + sums[2] + sums[3]);
}

void update_row(float* row, std::int64_t size) {
  for (std::int64_t i = 0; i + kWidth <= size; i += kWidth) store(row + i, load(row + i) + 0.0f);
}

}  // namespace reprise::REPRISE_SIMD
