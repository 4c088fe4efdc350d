#include "layers/bias.hpp"

#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

template <class T>
void expect_definition(const Stream& stream, std::int64_t rows, std::int64_t cols) {
  SCOPED_TRACE(testing::Message() << rows << " x " << cols);
  const std::vector<T> bias = values_of<T>(random_table(cols, 1, 1.0, 1)),
                       before = values_of<T>(random_table(rows, cols, 1.0, 2));
  const auto addends = to_device(stream, bias);
  auto y = to_device(stream, before);
  auto d_bias = to_device(stream, std::vector<float>(bias.size(), 1.0f));
  Arena arena(stream);
  accumulate_bias_gradient<T>(stream, arena, {y.view(), rows, cols}, d_bias.view());
  add_bias<T>(stream, addends.view(), {y.view(), rows, cols});
  const std::vector<float> sums = to_host(stream, d_bias.view());
  const std::vector<T> after = to_host(stream, y.view());
  for (std::int64_t c = 0; c < cols; ++c) {
    double sum = 1.0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto at = static_cast<std::size_t>(r * cols + c);
      const auto value = static_cast<float>(before[at]);
      sum += static_cast<double>(value);
      EXPECT_EQ(after[at], T(value + static_cast<float>(bias[static_cast<std::size_t>(c)]))) << r << " " << c;
    }
    EXPECT_NEAR(static_cast<double>(sums[static_cast<std::size_t>(c)]), sum, 1e-4) << c;
  }
}

TEST(Bias, SumAndGradientEqualTheirDefinition) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t cols : {1, 24, 45, 264}) {
      for (const std::int64_t rows : {0, 1, 300}) {
        expect_definition<float>(stream, rows, cols);
        expect_definition<BFloat16>(stream, rows, cols);
      }
    }
    expect_definition<BFloat16>(stream, 3, 2056);
  });
}

TEST(Bias, ThreadsAndRepetitionChangeNoBitOfTheGradient) {
  const Table d_y = random_table(1000, 40, 1.0, 1);
  ThreadPool pool(4);
  const auto gradient_on = [&](const Stream& stream) {
    const auto rows = to_device(stream, values_of<float>(d_y));
    auto d_bias = to_device(stream, std::vector<float>(40));
    Arena arena(stream);
    accumulate_bias_gradient<float>(stream, arena, {rows.view(), 1000, 40}, d_bias.view());
    return to_host(stream, d_bias.view());
  };
  EXPECT_EQ(gradient_on(test_stream()), gradient_on(rank_stream(pool)));
}

}  // namespace
}  // namespace reprise
