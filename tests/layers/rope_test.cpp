#include "layers/rope.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/elementwise.hpp"
#include "tests/layers/decoder_ranks.hpp"

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
    Arena arena(test_stream());
    const auto positions = to_device(counting(200));
    const Table table = table_of(test_stream(), RotaryEmbedding(config).table(test_stream(), arena, positions.view()));
    for (std::int64_t p = 0; p < 200; ++p) {
      for (std::int64_t i = 0; i < 32; ++i) {
        EXPECT_NEAR(table(p, i), std::cos(oracle.angle(p, i)), 2e-5);
        EXPECT_NEAR(table(p, i + 32), std::sin(oracle.angle(p, i)), 2e-5);
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

void expect_rotation(const Stream& stream, std::int64_t dim) {
  SCOPED_TRACE(dim);
  const std::int64_t tokens = 70, heads = 2, cols = 3 * dim;
  const DecoderConfig config = config_with(dim, 10000.0);
  const DecoderOracle oracle(config, {});
  Arena arena(stream);
  const auto numbers = to_device(stream, counting(9));
  const MatrixView<float> table = RotaryEmbedding(config).table(stream, arena, numbers.view());
  const Table before = random_table(tokens, cols, 1.0, 4);
  std::vector<std::int32_t> rows;
  for (std::int64_t t = 0; t < tokens; ++t) rows.push_back(static_cast<std::int32_t>(t % 9));
  const auto table_rows = to_device(stream, rows);
  auto x = to_device(stream, values_of<float>(before));
  const MatrixView<float> matrix(x.view(), tokens, cols);
  rotate_heads<float>(stream, table, table_rows.view(), heads, false, matrix);
  const Table turned = table_of(stream, matrix);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::int64_t head = c / dim * dim, i = (c - head) % (dim / 2);
      const double angle = oracle.angle(t % 9, i), a = before(t, head + i), b = before(t, head + i + dim / 2);
      const double want =
          c - head < dim / 2 ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
      EXPECT_NEAR(turned(t, c), c < heads * dim ? want : before(t, c), 1e-5);
    }
  }
  rotate_heads<float>(stream, table, table_rows.view(), heads, true, matrix);
  const Table back = table_of(stream, matrix);
  for (std::size_t i = 0; i < back.data.size(); ++i) EXPECT_NEAR(back.data[i], before.data[i], 1e-6);
}

TEST(RotaryEmbedding, RotatesTheFirstHeadsAndBackAgain) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t dim : {2, 6, 48, 64}) expect_rotation(stream, dim);
  });
}

TEST(RotaryEmbedding, BFloat16IsRotatedInFloat32) {
  const std::int64_t tokens = 5, dim = 32;
  const DecoderConfig config = config_with(dim, 10000.0);
  Arena arena(test_stream());
  const auto numbers = to_device(counting(tokens));
  const MatrixView<float> table = RotaryEmbedding(config).table(test_stream(), arena, numbers.view());
  auto stored = to_device(values_of<BFloat16>(random_table(tokens, dim, 1.0, 4)));
  auto widened = to_device(std::vector<float>(static_cast<std::size_t>(tokens * dim)));
  cast<float, BFloat16>(test_stream(), stored.view(), widened.view());
  rotate_heads<BFloat16>(test_stream(), table, numbers.view(), 1, false, {stored.view(), tokens, dim});
  rotate_heads<float>(test_stream(), table, numbers.view(), 1, false, {widened.view(), tokens, dim});
  const std::vector<BFloat16> got = to_host(stored);
  const std::vector<float> want = to_host(widened);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], BFloat16(want[i])) << i;
}

}  // namespace
}  // namespace reprise
