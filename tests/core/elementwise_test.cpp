#include "core/elementwise.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/core/simd_levels.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kSizes[] = {0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 100, 32'768, 32'769, 70'001};

template <class T>
std::vector<T> random_values(std::int64_t size, std::uint64_t seed) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < size; ++i) {
    values.push_back(static_cast<T>(static_cast<float>(random_normal(seed, static_cast<std::uint64_t>(i)))));
  }
  if (size > 2) values[1] = static_cast<T>(std::numeric_limits<float>::infinity());
  if (size > 5) values[4] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  return values;
}

template <class T>
void expect_same_bits(const std::vector<T>& got, const std::vector<T>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto a = static_cast<float>(got[i]), b = static_cast<float>(expected[i]);
    if (std::isnan(b)) {
      ASSERT_TRUE(std::isnan(a)) << i;
    } else {
      ASSERT_EQ(std::memcmp(&got[i], &expected[i], sizeof(T)), 0) << i << ": " << a << " instead of " << b;
    }
  }
}

template <class T, class U>
void check_binary(const CpuStream& stream, std::int64_t size) {
  const auto x = random_values<U>(size, 1);
  auto sum = random_values<T>(size, 2);
  auto expected = sum;
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] = static_cast<T>(static_cast<float>(expected[i]) + static_cast<float>(x[i]));
  }
  add(stream, VectorView<const U>(x), VectorView<T>(sum));
  expect_same_bits(sum, expected);

  std::vector<T> converted(x.size(), static_cast<T>(9.0f)), plain;
  for (const U value : x) plain.push_back(static_cast<T>(static_cast<float>(value)));
  cast(stream, VectorView<const U>(x), VectorView<T>(converted));
  expect_same_bits(converted, plain);
}

template <class T>
void check_unary(const CpuStream& stream, std::int64_t size) {
  auto y = random_values<T>(size, 3);
  auto expected = y;
  for (T& value : expected) value = static_cast<T>(static_cast<float>(value) * 0.37f);
  scale(stream, 0.37f, VectorView<T>(y));
  expect_same_bits(y, expected);
  fill(stream, VectorView<T>(y), -1.25f);
  EXPECT_TRUE(std::all_of(y.begin(), y.end(), [](T value) { return static_cast<float>(value) == -1.25f; }));
}

TEST(Elementwise, EqualsAPlainLoopAtEveryLevelSizeTypeAndThreadCount) {
  ThreadPool pool(2);
  at_every_simd_level([&] {
    for (const std::int64_t size : kSizes) {
      for (const CpuStream& stream : {CpuStream{}, CpuStream{&pool}}) {
        check_binary<float, float>(stream, size);
        check_binary<float, BFloat16>(stream, size);
        check_binary<BFloat16, float>(stream, size);
        check_binary<BFloat16, BFloat16>(stream, size);
        check_unary<float>(stream, size);
        check_unary<BFloat16>(stream, size);
      }
    }
  });
}

TEST(Elementwise, NothingBehindTheEndIsTouched) {
  at_every_simd_level([] {
    for (std::int64_t size = 0; size < 40; ++size) {
      std::vector<float> x(64, 1.0f), y(64, 5.0f);
      std::vector<BFloat16> z(64, BFloat16(5.0f));
      add(CpuStream{}, VectorView<const float>(x.data(), size), VectorView<float>(y.data(), size));
      cast(CpuStream{}, VectorView<const float>(x.data(), size), VectorView<BFloat16>(z.data(), size));
      EXPECT_EQ(std::count(y.begin(), y.end(), 5.0f), 64 - size);
      EXPECT_EQ(std::count(z.begin(), z.end(), BFloat16(5.0f)), 64 - size);
    }
  });
}

template <class T>
void check_rows(const CpuStream& stream) {
  constexpr std::int64_t kRows = 2'000, kCols = 33;
  const auto from = random_values<T>(kRows * kCols, 4);
  const std::vector<std::int32_t> index = {3, 0, 1999, 7, 500};
  std::vector<T> gathered(index.size() * kCols), scattered(kRows * kCols, static_cast<T>(8.0f));
  const auto picked = static_cast<std::int64_t>(index.size());
  gather_rows(stream, MatrixView<const T>(from, kRows, kCols), index, MatrixView<T>(gathered, picked, kCols));
  std::vector<T> expected(gathered.size()), zeroed(scattered.size());
  for (std::size_t i = 0; i < index.size(); ++i) {
    const auto row = static_cast<std::int64_t>(index[i]) * kCols;
    std::copy_n(from.begin() + row, kCols, expected.begin() + static_cast<std::int64_t>(i) * kCols);
    std::copy_n(from.begin() + row, kCols, zeroed.begin() + row);
  }
  expect_same_bits(gathered, expected);
  scatter_rows(stream, MatrixView<const T>(gathered, picked, kCols), index, MatrixView<T>(scattered, kRows, kCols));
  expect_same_bits(scattered, zeroed);
}

TEST(Elementwise, RowsAreGatheredAndScattered) {
  ThreadPool pool(2);
  for (const CpuStream& stream : {CpuStream{}, CpuStream{&pool}}) {
    check_rows<float>(stream);
    check_rows<BFloat16>(stream);
  }
}

TEST(Elementwise, MistakesAreErrors) {
  std::vector<float> two(2), three(3);
  EXPECT_THROW(add(CpuStream{}, VectorView<const float>(two), VectorView<float>(three)), Error);
  EXPECT_THROW(cast(CpuStream{}, VectorView<const float>(two), VectorView<float>(three)), Error);
  const std::vector<std::int32_t> outside = {3}, negative = {-1};
  const MatrixView<const float> from(three, 3, 1);
  const MatrixView<float> to(two.data(), 1, 1);
  EXPECT_THROW(gather_rows(CpuStream{}, from, outside, to), Error);
  EXPECT_THROW(gather_rows(CpuStream{}, from, negative, to), Error);
  EXPECT_THROW(scatter_rows(CpuStream{}, MatrixView<const float>(to), outside, MatrixView<float>(three, 3, 1)), Error);
  EXPECT_THROW(gather_rows(CpuStream{}, from, {}, to), Error);
}

TEST(Elementwise, TheStreamOverloadReachesTheCpu) {
  std::vector<float> x = {1.0f, 2.0f}, y = {3.0f, 4.0f};
  const Stream stream(CpuStream{});
  add(stream, VectorView<const float>(x), VectorView<float>(y));
  scale(stream, 2.0f, VectorView<float>(y));
  EXPECT_EQ(y, (std::vector<float>{8.0f, 12.0f}));
}

}  // namespace
}  // namespace reprise
