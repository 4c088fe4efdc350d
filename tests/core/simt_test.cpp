// What core/cuda gives to kernels, on a GPU and on the emulated device: what passes here means the same on both.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/random.hpp"
#include "tests/core/simt_kernels.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

TEST(Simt, FragmentsHoldTheDocumentedElements) {
  std::vector<BFloat16> a, b;  // small integers: every sum is exact
  for (int i = 0; i < 16 * 16; ++i) a.emplace_back(static_cast<float>((i * 7) % 31 - 15));
  for (int i = 0; i < 8 * 16; ++i) b.emplace_back(static_cast<float>((i * 5) % 23 - 11));
  std::vector<float> expected(16 * 8);
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      for (std::size_t k = 0; k < 16; ++k) {
        expected[i * 8 + j] += static_cast<float>(a[i * 16 + k]) * static_cast<float>(b[j * 16 + k]);
      }
    }
  }
  const auto device_a = to_device(a), device_b = to_device(b);
  for (const bool loads_by_matrix : {false, true}) {
    Buffer<float> c(test_stream(), 16 * 8, "c");
    tiny_product(test_stream().cuda(), {device_a.view().data, 16, 16}, {device_b.view().data, 8, 16},
                 {c.view().data, 16, 8}, loads_by_matrix);
    EXPECT_EQ(to_host(c), expected) << loads_by_matrix;
  }
}

TEST(Simt, TilesAreTransposed) {
  std::vector<BFloat16> values, expected(64);
  for (int i = 0; i < 64; ++i) values.emplace_back(static_cast<float>(i));
  for (std::size_t i = 0; i < 64; ++i) expected[i % 8 * 8 + i / 8] = values[i];
  const auto from = to_device(values);
  Buffer<BFloat16> to(test_stream(), 64, "to");
  transpose_tile(test_stream().cuda(), {from.view(), 8, 8}, {to.view(), 8, 8});
  EXPECT_EQ(to_host(to), expected);
}

TEST(Simt, CollectivesAreThoseOfAWarp) {
  Buffer<std::int32_t> out(test_stream(), 11 * 32, "out");
  collectives(test_stream().cuda(), out.view());
  const auto got = to_host(out);
  unsigned thirds = 0;
  for (unsigned lane = 0; lane < 32; lane += 3) thirds |= 1U << lane;
  for (int lane = 0; lane < 32; ++lane) {
    const std::vector<int> expected = {5,
                                       lane ^ 3,
                                       lane < 4 ? lane : lane - 4,
                                       lane % 16 + 4 < 16 ? lane + 4 : lane,
                                       static_cast<int>(thirds),
                                       1,
                                       0,
                                       31 * 32 / 2,
                                       lane < 16 ? 15 : 31,
                                       16,
                                       0};
    for (int which = 0; which < 11; ++which) {
      EXPECT_EQ(got[static_cast<std::size_t>(which * 32 + lane)], expected[static_cast<std::size_t>(which)])
          << "collective " << which << ", lane " << lane;
    }
  }
}

TEST(Simt, NamedBarriersJoinProducerAndConsumer) {
  Buffer<std::int32_t> out(test_stream(), 64, "out");
  named_barriers(test_stream().cuda(), out.view());
  const auto got = to_host(out);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(got[static_cast<std::size_t>(i)], 2 * i);
}

TEST(Simt, BlocksAgreeOnSumAndMaximum) {
  constexpr std::size_t kThreads = 1024, kBlocks = 3;
  std::vector<float> x;
  for (std::uint64_t i = 0; i < kBlocks * kThreads; ++i) {
    x.push_back(static_cast<float>(static_cast<int>(random_uniform(3, i) * 1000.0) - 500));
  }
  x[2 * kThreads + 77] = std::numeric_limits<float>::quiet_NaN();
  const auto input = to_device(x);
  Buffer<float> out(test_stream(), 2 * kBlocks * kThreads, "out");
  block_reductions(test_stream().cuda(), input.view(), out.view());
  const auto got = to_host(out);
  for (std::size_t i = 0; i < kBlocks * kThreads; ++i) {
    const auto begin = x.begin() + static_cast<std::ptrdiff_t>(i / kThreads * kThreads), end = begin + kThreads;
    if (i / kThreads == 2) {
      ASSERT_TRUE(std::isnan(got[i]) && std::isnan(got[kBlocks * kThreads + i])) << i;
    } else {
      ASSERT_EQ(got[i], std::accumulate(begin, end, 0.0f)) << i;  // integers: every order gives the same
      ASSERT_EQ(got[kBlocks * kThreads + i], *std::max_element(begin, end)) << i;
    }
  }
}

TEST(Simt, AsyncCopiesArriveAndFillWithZeros) {
  std::vector<float> values(96);
  std::iota(values.begin(), values.end(), 1.0f);
  const auto from = to_device(values);
  for (const std::int64_t valid : {96, 80, 40, 0}) {
    Buffer<float> to(test_stream(), 96, "to");
    copies(test_stream().cuda(), from.view(), valid, to.view());
    auto expected = values;
    std::fill(expected.begin() + valid, expected.end(), 0.0f);
    EXPECT_EQ(to_host(to), expected);
  }
}

}  // namespace
}  // namespace reprise
