#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace reprise {

/// Philox4x32-10 (Salmon et al., SC 2011): a counter-based generator, so that a draw depends on (seed, counter) alone
/// and never on the order, the thread or the rank that asks.
[[nodiscard]] std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t counter_low,
                                                  std::uint64_t counter_high);

/// 64 uniform bits for (seed, a, b); e.g. (seed, sample, position).
[[nodiscard]] inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0) {
  const auto words = philox(seed, a, b);
  return (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
}

/// Uniform in [0, 1) with 53 bits.
[[nodiscard]] inline double random_uniform(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0) {
  return static_cast<double>(random_bits(seed, a, b) >> 11) * 0x1.0p-53;
}

/// Standard normal (Box-Muller).
[[nodiscard]] double random_normal(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0);

/// A bijection of [0, size) keyed by `seed` (cycle-walking Feistel network): element `index` of a shuffled order
/// without storing the order.
[[nodiscard]] std::uint64_t random_permutation(std::uint64_t seed, std::uint64_t size, std::uint64_t index);

/// 64-bit FNV-1a over bytes, its start xored with seed * 0x9e3779b97f4a7c15, followed by a finaliser; the sample hash
/// of the replay store (docs/formats.md).
[[nodiscard]] std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t seed = 0);

}  // namespace reprise
