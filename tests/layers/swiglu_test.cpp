#include "layers/swiglu.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/layers/simd_levels.hpp"

namespace reprise {
namespace {

template <class T>
void expect_definition(double tolerance) {
  for (const std::int64_t ffn : {1, 7, 16, 45}) {
    const std::int64_t rows = 19;
    std::mt19937_64 generator(5);
    std::normal_distribution<float> normal(0.0f, 4.0f);
    std::vector<T> gate_up, d_y, y(static_cast<std::size_t>(rows * ffn)),
        d_gate_up(static_cast<std::size_t>(2 * rows * ffn));
    for (std::int64_t i = 0; i < 2 * rows * ffn; ++i) gate_up.push_back(T(normal(generator)));
    for (std::int64_t i = 0; i < rows * ffn; ++i) d_y.push_back(T(normal(generator)));
    const CpuStream stream;
    swiglu<T>(stream, {gate_up.data(), rows, 2 * ffn}, {y.data(), rows, ffn});
    swiglu_backward<T>(stream, {gate_up.data(), rows, 2 * ffn}, {d_y.data(), rows, ffn},
                       {d_gate_up.data(), rows, 2 * ffn});
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
  for_each_simd_level([] {
    SCOPED_TRACE(simd_level_name());
    expect_definition<float>(1e-5);
    expect_definition<BFloat16>(0.01);
  });
}

TEST(Swiglu, ExtremesAreFiniteAndNaNPasses) {
  std::vector<float> gate_up = {200.0f, -200.0f, std::nanf(""), 3.0f, 3.0f, 3.0f}, y(3), d_y(3, 1.0f), d(6);
  const CpuStream stream;
  swiglu<float>(stream, {gate_up.data(), 1, 6}, {y.data(), 1, 3});
  EXPECT_EQ(y[0], 600.0f);
  EXPECT_NEAR(y[1], 0.0f, 1e-30f);
  EXPECT_TRUE(std::isnan(y[2]));
  swiglu_backward<float>(stream, {gate_up.data(), 1, 6}, {d_y.data(), 1, 3}, {d.data(), 1, 6});
  EXPECT_EQ(d[0], 3.0f);
  EXPECT_NEAR(d[1], 0.0f, 1e-30f);
  EXPECT_TRUE(std::isnan(d[2]));
}

TEST(Swiglu, NoRows) {
  const CpuStream stream;
  swiglu<float>(stream, {nullptr, 0, 8}, {nullptr, 0, 4});
}

}  // namespace
}  // namespace reprise
