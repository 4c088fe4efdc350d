#include "core/elementwise.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/support/device.hpp"

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
void check_binary(const Stream& stream, std::int64_t size) {
  const auto x = random_values<U>(size, 1);
  const auto y = random_values<T>(size, 2);
  std::vector<T> expected = y, plain;
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] = static_cast<T>(static_cast<float>(expected[i]) + static_cast<float>(x[i]));
    plain.push_back(static_cast<T>(static_cast<float>(x[i])));
  }
  const auto addend = to_device(stream, x);
  auto sum = to_device(stream, y);
  add<T, U>(stream, addend.view(), sum.view());
  expect_same_bits(to_host(stream, sum.view()), expected);

  auto converted = to_device(stream, std::vector<T>(x.size(), static_cast<T>(9.0f)));
  cast<T, U>(stream, addend.view(), converted.view());
  expect_same_bits(to_host(stream, converted.view()), plain);
}

template <class T>
void check_unary(const Stream& stream, std::int64_t size) {
  auto expected = random_values<T>(size, 3);
  auto y = to_device(stream, expected);
  for (T& value : expected) value = static_cast<T>(static_cast<float>(value) * 0.37f);
  scale(stream, 0.37f, y.view());
  expect_same_bits(to_host(stream, y.view()), expected);
  fill(stream, y.view(), -1.25f);
  const auto filled = to_host(stream, y.view());
  EXPECT_TRUE(std::all_of(filled.begin(), filled.end(), [](T value) { return static_cast<float>(value) == -1.25f; }));
}

TEST(Elementwise, EqualsAPlainLoopAtEverySizeAndType) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t size : kSizes) {
      check_binary<float, float>(stream, size);
      check_binary<float, BFloat16>(stream, size);
      check_binary<BFloat16, float>(stream, size);
      check_binary<BFloat16, BFloat16>(stream, size);
      check_unary<float>(stream, size);
      check_unary<BFloat16>(stream, size);
    }
  });
}

TEST(Elementwise, NothingBeforeTheBeginAndBehindTheEndIsTouched) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t begin : {0, 1, 8}) {
      for (std::int64_t size = 0; size < 40; ++size) {
        const auto x = to_device(stream, std::vector<float>(64, 1.0f));
        auto y = to_device(stream, std::vector<float>(64, 5.0f));
        auto z = to_device(stream, std::vector<BFloat16>(64, BFloat16(5.0f)));
        add<float, float>(stream, x.view().slice(begin, size), y.view().slice(begin, size));
        cast<BFloat16, float>(stream, x.view().slice(begin, size), z.view().slice(begin, size));
        const auto sums = to_host(stream, y.view());
        const auto converted = to_host(stream, z.view());
        for (std::size_t i = 0; i < 64; ++i) {
          const auto at = static_cast<std::int64_t>(i);
          const bool is_inside = begin <= at && at < begin + size;
          ASSERT_EQ(sums[i], is_inside ? 6.0f : 5.0f);
          ASSERT_EQ(static_cast<float>(converted[i]), is_inside ? 1.0f : 5.0f);
        }
      }
    }
  });
}

template <class T>
void check_rows(const Stream& stream, std::int64_t cols) {
  constexpr std::int64_t kRows = 2'000;
  const auto values = random_values<T>(kRows * cols, 4);
  const std::vector<std::int32_t> rows = {3, 0, 1999, 7, 500};
  const auto picked = static_cast<std::int64_t>(rows.size());
  const auto from = to_device(stream, values);
  const auto index = to_device(stream, rows);
  Buffer<T> gathered(stream, picked * cols, "gathered");
  auto scattered = to_device(stream, std::vector<T>(values.size(), static_cast<T>(8.0f)));
  std::vector<T> expected(static_cast<std::size_t>(picked * cols)), zeroed(values.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<std::int64_t>(rows[i]) * cols;
    std::copy_n(values.begin() + row, cols, expected.begin() + static_cast<std::int64_t>(i) * cols);
    std::copy_n(values.begin() + row, cols, zeroed.begin() + row);
  }
  const MatrixView<T> few(gathered.view(), picked, cols), all(scattered.view(), kRows, cols);
  gather_rows<T>(stream, {from.view(), kRows, cols}, index.view(), few);
  expect_same_bits(to_host(stream, gathered.view()), expected);
  scatter_rows<T>(stream, few, index.view(), all);
  expect_same_bits(to_host(stream, scattered.view()), zeroed);
  gather_rows<T>(stream, {from.view(), kRows, cols}, {}, few.row_range(0, 0));
}

TEST(Elementwise, RowsAreGatheredAndScattered) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t cols : {1, 33, 64}) {
      check_rows<float>(stream, cols);
      check_rows<BFloat16>(stream, cols);
    }
  });
}

TEST(Elementwise, SizesThatDoNotMatchAreErrors) {
  const Stream& stream = test_stream();
  Buffer<float> two(stream, 2, "two"), three(stream, 3, "three");
  const auto index = to_device(std::vector<std::int32_t>{0});
  EXPECT_THROW((add<float, float>(stream, two.view(), three.view())), Error);
  EXPECT_THROW((cast<float, float>(stream, two.view(), three.view())), Error);
  const MatrixView<float> matrix(three.view(), 3, 1), row(two.view(), 1, 1), pair(two.view(), 1, 2);
  EXPECT_THROW(gather_rows<float>(stream, matrix, {}, row), Error);
  EXPECT_THROW(gather_rows<float>(stream, matrix, index.view(), pair), Error);
  EXPECT_THROW(scatter_rows<float>(stream, pair, index.view(), matrix), Error);
}

// A GPU cannot throw from inside a kernel.
TEST(Elementwise, OnACpuIndicesOutsideAreErrors) {
  std::vector<float> two(2), three(3);
  const std::vector<std::int32_t> outside = {3}, negative = {-1};
  const MatrixView<const float> from(three, 3, 1);
  const MatrixView<float> to(two.data(), 1, 1);
  EXPECT_THROW(gather_rows(CpuStream{}, from, outside, to), Error);
  EXPECT_THROW(gather_rows(CpuStream{}, from, negative, to), Error);
  EXPECT_THROW(scatter_rows(CpuStream{}, MatrixView<const float>(to), outside, MatrixView<float>(three, 3, 1)), Error);
}

}  // namespace
}  // namespace reprise
