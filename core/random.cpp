#include "core/random.hpp"

#include <bit>
#include <cmath>
#include <numbers>

#include "core/error.hpp"

namespace reprise {

std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t counter_low, std::uint64_t counter_high) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
  auto x0 = static_cast<std::uint32_t>(counter_low), x1 = static_cast<std::uint32_t>(counter_low >> 32);
  auto x2 = static_cast<std::uint32_t>(counter_high), x3 = static_cast<std::uint32_t>(counter_high >> 32);
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * x0, product1 = kMultiplier1 * x2;
    x0 = static_cast<std::uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<std::uint32_t>(product1);
    x2 = static_cast<std::uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<std::uint32_t>(product0);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return {x0, x1, x2, x3};
}

double random_normal(std::uint64_t seed, std::uint64_t a, std::uint64_t b) {
  const auto words = philox(seed, a, b);
  const std::uint64_t first = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
  const std::uint64_t second = (static_cast<std::uint64_t>(words[2]) << 32) | words[3];
  const double radius_uniform = static_cast<double>((first >> 11) + 1) * 0x1.0p-53;  // (0, 1]: its logarithm exists
  const double angle_uniform = static_cast<double>(second >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(radius_uniform)) * std::cos(2.0 * std::numbers::pi * angle_uniform);
}

std::uint64_t random_permutation(std::uint64_t seed, std::uint64_t size, std::uint64_t index) {
  REPRISE_CHECK(index < size, "element {} of an order of {}", index, size);
  if (size == 1) return 0;
  constexpr std::uint64_t kRounds = 6;
  // A Feistel network permutes [0, 4^half_bits), at most four times the wanted range; a value outside the range is fed
  // in again, which ends inside because the orbit of `index` is a cycle.
  const auto half_bits = static_cast<int>((std::bit_width(size - 1) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  std::uint64_t value = index;
  do {
    std::uint64_t left = value >> half_bits, right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t mixed = left ^ (random_bits(seed, right, (size << 3) ^ round) & mask);
      left = right;
      right = mixed;
    }
    value = (left << half_bits) | right;
  } while (value >= size);
  return value;
}

std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t seed) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::uint64_t hash = 0xcbf29ce484222325u ^ (seed * 0x9e3779b97f4a7c15u);  // spread: a seed is no first byte
  for (std::size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  // FNV's upper bits are weak: mix them (two rounds of xor-shift and multiply, a bijection).
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdu;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53u;
  return hash ^ (hash >> 33);
}

}  // namespace reprise
