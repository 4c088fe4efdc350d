#include "core/random.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string_view>
#include <vector>

#include "core/error.hpp"

namespace reprise {
namespace {

// The published known-answer vectors of Philox4x32-10.
TEST(Philox, GivesThePublishedWords) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  EXPECT_EQ(philox(kOnes, kOnes, kOnes), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, UniformFillsItsBinsEvenly) {
  constexpr int kDraws = 100'000, kBins = 64;
  std::vector<int> bins(kBins);
  double sum = 0.0;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const double value = random_uniform(7, i, 3);
    ASSERT_GE(value, 0.0);
    ASSERT_LT(value, 1.0);
    ++bins[static_cast<std::size_t>(value * kBins)];
    sum += value;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  double chi_square = 0.0;
  for (const int count : bins) chi_square += std::pow(count - kDraws / kBins, 2) / (double{kDraws} / kBins);
  EXPECT_LT(chi_square, 120.0);  // 63 degrees of freedom: exceeded by chance once in 10^5 seeds
}

TEST(Random, NormalHasItsFirstFourMoments) {
  constexpr int kDraws = 100'000;
  double first = 0.0, second = 0.0, third = 0.0, fourth = 0.0;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const double value = random_normal(11, i);
    ASSERT_TRUE(std::isfinite(value));
    first += value / kDraws;
    second += value * value / kDraws;
    third += value * value * value / kDraws;
    fourth += value * value * value * value / kDraws;
  }
  EXPECT_NEAR(first, 0.0, 0.015);
  EXPECT_NEAR(second, 1.0, 0.02);
  EXPECT_NEAR(third, 0.0, 0.06);
  EXPECT_NEAR(fourth, 3.0, 0.15);
}

TEST(Permutation, IsABijectionOfEverySize) {
  for (const std::uint64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4096, 4097, 70'000}) {
    std::vector<bool> seen(size);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t element = random_permutation(5, size, i);
      ASSERT_LT(element, size);
      ASSERT_FALSE(seen[element]) << size << " " << i;
      seen[element] = true;
    }
  }
}

TEST(Permutation, WorksAtTheLargestSizes) {
  const std::uint64_t size = std::numeric_limits<std::uint64_t>::max();
  std::set<std::uint64_t> elements;
  for (std::uint64_t i = 0; i < 1000; ++i) elements.insert(random_permutation(1, size, size - 1 - i));
  EXPECT_EQ(elements.size(), 1000U);
}

TEST(Permutation, EveryElementIsEquallyLikelyAtEveryPlace) {
  constexpr std::uint64_t kSize = 10, kSeeds = 20'000;
  std::vector<int> counts(kSize * kSize);
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    for (std::uint64_t i = 0; i < kSize; ++i) ++counts[i * kSize + random_permutation(seed, kSize, i)];
  }
  for (const int count : counts) EXPECT_NEAR(count, 2000, 250);  // more than five standard deviations
}

TEST(Permutation, SeedsGiveOtherOrdersAndOutsideIsAnError) {
  int same = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) same += random_permutation(1, 1000, i) == random_permutation(2, 1000, i);
  EXPECT_LT(same, 12);
  EXPECT_THROW(static_cast<void>(random_permutation(1, 10, 10)), Error);
  EXPECT_THROW(static_cast<void>(random_permutation(1, 0, 0)), Error);
}

std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0) {
  return hash_bytes(text.data(), text.size(), seed);
}

// Stored files hold these hashes: a change here is a change of format.
TEST(HashBytes, IsFixedForever) {
  EXPECT_EQ(hash_text(""), 0xefd01f60ba992926u);
  EXPECT_EQ(hash_text("a"), 0x82a2a958a9bece5bu);
  EXPECT_EQ(hash_text("reprise"), 0xa82cdf834aeca7d8u);
  EXPECT_EQ(hash_text("reprise", 7), 0x445f38478318d929u);
}

TEST(HashBytes, EveryBitOfInputAndSeedMatters) {
  std::set<std::uint64_t> hashes{hash_text("")};
  std::vector<unsigned char> bytes(16);
  for (std::size_t bit = 0; bit < 128; ++bit) {
    bytes[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
    hashes.insert(hash_bytes(bytes.data(), bytes.size()));
    bytes[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
  }
  for (int bit = 0; bit < 64; ++bit) hashes.insert(hash_bytes(bytes.data(), bytes.size(), std::uint64_t{1} << bit));
  EXPECT_EQ(hashes.size(), 1U + 128U + 64U);
}

}  // namespace
}  // namespace reprise
