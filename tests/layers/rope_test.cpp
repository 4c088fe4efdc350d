#include "layers/rope.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/layers/decoder_ranks.hpp"
#include "tests/layers/simd_levels.hpp"

namespace reprise {
namespace {

DecoderConfig config_with(std::int64_t head_dim, double theta) {
  DecoderConfig config = tiny_decoder_config();
  config.head_dim = head_dim;
  config.rope_theta = theta;
  return config;
}

std::vector<std::int32_t> counting(std::int64_t count) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), 0);
  return positions;
}

TEST(RotaryEmbedding, TableHoldsTheAnglesOfTheOracle) {
  for (const double factor : {1.0, 8.0}) {
    DecoderConfig config = config_with(64, 500000.0);
    config.rope_scaling = {factor, 1.0, 4.0, 64};
    const DecoderOracle oracle(config, {});
    const CpuStream stream;
    Arena arena{Stream(stream)};
    const MatrixView<float> table = RotaryEmbedding(config).table(stream, arena, counting(200));
    for (std::int64_t p = 0; p < 200; ++p) {
      for (std::int64_t i = 0; i < 32; ++i) {
        EXPECT_NEAR(static_cast<double>(table(p, i)), std::cos(oracle.angle(p, i)), 2e-5);
        EXPECT_NEAR(static_cast<double>(table(p, i + 32)), std::sin(oracle.angle(p, i)), 2e-5);
      }
    }
  }
}

/// The three bands of Llama 3.1's stretching, told by its published numbers.
TEST(RotaryEmbedding, Llama3KeepsShortAndSlowsLongWavelengths) {
  DecoderConfig config = config_with(128, 500000.0);
  const std::vector<float> plain = RotaryEmbedding(config).frequencies();
  config.rope_scaling = {8.0, 1.0, 4.0, 8192};
  const std::vector<float> scaled = RotaryEmbedding(config).frequencies();
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2.0 * 3.14159265358979 / static_cast<double>(plain[i]);
    const float ratio = scaled[i] / plain[i];
    if (wavelength < 8192.0 / 4.0) {
      EXPECT_EQ(ratio, 1.0f) << i;
    } else if (wavelength > 8192.0) {
      EXPECT_FLOAT_EQ(ratio, 0.125f) << i;
    } else {
      EXPECT_GT(ratio, 0.125f);
      EXPECT_LT(ratio, 1.0f);
    }
  }
}

TEST(RotaryEmbedding, RotatesTheFirstHeadsAndBackAgain) {
  for_each_simd_level([] {
    for (const std::int64_t dim : {2, 6, 48}) {
      const std::int64_t tokens = 70, heads = 2, cols = 3 * dim;
      const DecoderConfig config = config_with(dim, 10000.0);
      const DecoderOracle oracle(config, {});
      const CpuStream stream;
      Arena arena{Stream(stream)};
      const MatrixView<float> table = RotaryEmbedding(config).table(stream, arena, counting(9));
      const Table before = random_table(tokens, cols, 1.0, 4);
      std::vector<float> x(before.data.begin(), before.data.end());
      std::vector<std::int32_t> positions;
      for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<std::int32_t>(t % 9));
      rotate_heads<float>(stream, table, positions, heads, false, {x.data(), tokens, cols});
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t c = 0; c < cols; ++c) {
          const std::int64_t head = c / dim * dim, i = (c - head) % (dim / 2);
          const double angle = oracle.angle(t % 9, i), a = before(t, head + i), b = before(t, head + i + dim / 2);
          const double turned = c - head < dim / 2 ? a * std::cos(angle) - b * std::sin(angle)
                                                   : b * std::cos(angle) + a * std::sin(angle);
          EXPECT_NEAR(static_cast<double>(x[static_cast<std::size_t>(t * cols + c)]),
                      c < heads * dim ? turned : before(t, c), 1e-5);
        }
      }
      rotate_heads<float>(stream, table, positions, heads, true, {x.data(), tokens, cols});
      for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(static_cast<double>(x[i]), before.data[i], 1e-6);
    }
  });
}

}  // namespace
}  // namespace reprise
