#include "launcher/arg_max.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/random.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void expect_arg_max(const std::vector<float>& values, std::int64_t rows, const std::vector<ArgMax>& expected) {
  on_every_stream([&](const Stream& stream) {
    const auto cols = static_cast<std::int64_t>(values.size()) / rows;
    const auto matrix = to_device(stream, values);
    Buffer<ArgMax> best(stream, rows, "best");
    arg_max_rows(stream, {matrix.view(), rows, cols}, best.view());
    const std::vector<ArgMax> got = to_host(stream, best.view());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(got[i].value, expected[i].value) << "row " << i << " of " << cols << " columns";
      EXPECT_EQ(got[i].col, expected[i].col) << "row " << i << " of " << cols << " columns";
    }
  });
}

TEST(ArgMaxRows, IsTheLargestOfEveryRowForEveryWidth) {
  for (const std::int64_t cols : {1, 3, 4, 127, 1024, 4100, 9001}) {
    constexpr std::int64_t kRows = 3;
    std::vector<float> values;
    std::vector<ArgMax> expected;
    for (std::int64_t row = 0; row < kRows; ++row) {
      ArgMax best{-kInfinity, -1};
      for (std::int64_t col = 0; col < cols; ++col) {
        const auto value =
            static_cast<float>(random_normal(5, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(col)));
        values.push_back(value);
        if (value > best.value) best = {value, static_cast<std::int32_t>(col)};
      }
      expected.push_back(best);
    }
    expect_arg_max(values, kRows, expected);
  }
}

TEST(ArgMaxRows, TakesTheFirstOfEqualsAndNaNAsInfinity) {
  std::vector<float> equal(3000, -2.0f);
  equal[2900] = equal[1700] = equal[40] = 1.5f;
  expect_arg_max(equal, 1, {{1.5f, 40}});
  expect_arg_max({-0.0f, 0.0f, 0.0f, -0.0f}, 2, {{0.0f, 0}, {0.0f, 0}});
  expect_arg_max({-kInfinity, -kInfinity, 1.0f, kNaN, kInfinity, kNaN}, 3,
                 {{-kInfinity, 0}, {kInfinity, 1}, {kInfinity, 0}});
}

TEST(ArgMaxRows, ARowWithoutColumnsHasNone) {
  expect_arg_max({}, 2, {{-kInfinity, -1}, {-kInfinity, -1}});
}

}  // namespace
}  // namespace reprise
