#include "layers/swiglu.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/support/device.hpp"

namespace reprise {
namespace {

template <class T>
void expect_definition(const Stream& stream, double tolerance) {
  for (const std::int64_t ffn : {1, 7, 16, 45, 2056}) {
    const std::int64_t rows = 19;
    std::mt19937_64 generator(5);
    std::normal_distribution<float> normal(0.0f, 4.0f);
    std::vector<T> gate_up, d_y;
    for (std::int64_t i = 0; i < 2 * rows * ffn; ++i) gate_up.push_back(T(normal(generator)));
    for (std::int64_t i = 0; i < rows * ffn; ++i) d_y.push_back(T(normal(generator)));
    const auto input = to_device(stream, gate_up), gradient = to_device(stream, d_y);
    Buffer<T> output(stream, rows * ffn, "y"), d_input(stream, 2 * rows * ffn, "d_gate_up");
    swiglu<T>(stream, {input.view(), rows, 2 * ffn}, {output.view(), rows, ffn});
    swiglu_backward<T>(stream, {input.view(), rows, 2 * ffn}, {gradient.view(), rows, ffn},
                       {d_input.view(), rows, 2 * ffn});
    const std::vector<T> y = to_host(stream, output.view()), d_gate_up = to_host(stream, d_input.view());
    const auto number = [](T x) { return static_cast<double>(static_cast<float>(x)); };
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t c = 0; c < ffn; ++c) {
        const auto gate_at = static_cast<std::size_t>(row * 2 * ffn + c), at = static_cast<std::size_t>(row * ffn + c);
        const auto up_at = gate_at + static_cast<std::size_t>(ffn);
        const double gate = number(gate_up[gate_at]), up = number(gate_up[up_at]), d = number(d_y[at]);
        const double sigma = 1.0 / (1.0 + std::exp(-gate));
        const auto near = [&](T got, double want) {
          EXPECT_NEAR(number(got), want, tolerance * (1.0 + std::abs(want)));
        };
        near(y[at], gate * sigma * up);
        near(d_gate_up[gate_at], d * up * sigma * (1.0 + gate * (1.0 - sigma)));
        near(d_gate_up[up_at], d * gate * sigma);
      }
    }
  }
}

TEST(Swiglu, EqualsItsDefinition) {
  on_every_stream([](const Stream& stream) {
    expect_definition<float>(stream, 1e-5);
    expect_definition<BFloat16>(stream, 0.01);
  });
}

TEST(Swiglu, ExtremesAreFiniteAndNaNPasses) {
  const auto gate_up = to_device(std::vector<float>{200.0f, -200.0f, std::nanf(""), 3.0f, 3.0f, 3.0f}),
             d_y = to_device(std::vector<float>(3, 1.0f));
  Buffer<float> output(test_stream(), 3, "y"), d_input(test_stream(), 6, "d_gate_up");
  swiglu<float>(test_stream(), {gate_up.view(), 1, 6}, {output.view(), 1, 3});
  const std::vector<float> y = to_host(output);
  EXPECT_EQ(y[0], 600.0f);
  EXPECT_NEAR(y[1], 0.0f, 1e-30f);
  EXPECT_TRUE(std::isnan(y[2]));
  swiglu_backward<float>(test_stream(), {gate_up.view(), 1, 6}, {d_y.view(), 1, 3}, {d_input.view(), 1, 6});
  const std::vector<float> d = to_host(d_input);
  EXPECT_EQ(d[0], 3.0f);
  EXPECT_NEAR(d[1], 0.0f, 1e-30f);
  EXPECT_TRUE(std::isnan(d[2]));
}

TEST(Swiglu, NoRows) {
  swiglu<float>(test_stream(), {nullptr, 0, 8}, {nullptr, 0, 4});
}

}  // namespace
}  // namespace reprise
