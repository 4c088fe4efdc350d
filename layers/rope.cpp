#include "layers/rope.hpp"

#include <cmath>
#include <numbers>

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void rotate_rows(const float* table, const std::int32_t* table_rows, float* x, std::int64_t rows,
                                      std::int64_t stride, std::int64_t heads, std::int64_t head_dim, float sign))
REPRISE_SIMD_DECLARE(void rotate_rows(const float* table, const std::int32_t* table_rows, std::uint16_t* x,
                                      std::int64_t rows, std::int64_t stride, std::int64_t heads, std::int64_t head_dim,
                                      float sign))

namespace {

/// Llama 3's stretching: short wavelengths stay, long ones are divided by the factor, those between are blended.
double scaled_frequency(const DecoderConfig::RopeScaling& scaling, double frequency) {
  if (scaling.factor == 1.0) return frequency;
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < original / scaling.high_freq_factor) return frequency;
  if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
  const double blend =
      (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1.0 - blend) * frequency / scaling.factor + blend * frequency;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(const DecoderConfig& config) {
  for (std::int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(config.head_dim);
    const double frequency = std::pow(config.rope_theta, -exponent);
    frequencies_.push_back(static_cast<float>(scaled_frequency(config.rope_scaling, frequency)));
  }
}

MatrixView<float> RotaryEmbedding::table(const Stream& stream, Arena& arena,
                                         VectorView<const std::int32_t> positions) const {
  const auto head_dim = static_cast<std::int64_t>(2 * frequencies_.size());
  const MatrixView<float> table = arena.matrix<float>(positions.size, head_dim, "rotary table");
  rotary_table(stream, frequencies_, positions, table);
  return table;
}

void rotary_table(const CpuStream& stream, VectorView<const float> frequencies,
                  VectorView<const std::int32_t> positions, MatrixView<float> table) {
  const std::int64_t half = frequencies.size;
  REPRISE_CHECK(table.rows == positions.size && table.cols == 2 * half,
                "table [{}, {}] of {} positions, {} frequencies", table.rows, table.cols, positions.size, half);
  stream.parallel_for(positions.size, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      for (std::int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[p]) * frequencies[i];
        table(p, i) = static_cast<float>(std::cos(static_cast<double>(angle)));
        table(p, i + half) = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
}

template <class T>
void rotate_heads(const CpuStream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x) {
  REPRISE_CHECK(table_rows.size == x.rows && heads * table.cols <= x.cols, "{} table rows, x [{}, {}], {} heads of {}",
                table_rows.size, x.rows, x.cols, heads, table.cols);
  stream.parallel_for(x.rows, 64, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(rotate_rows, table.data, table_rows.data + begin, simd_pointer(x.row(begin).data), end - begin,
                      x.cols, heads, table.cols, inverse ? -1.0f : 1.0f);
  });
}

template void rotate_heads<float>(const CpuStream&, MatrixView<const float>, VectorView<const std::int32_t>,
                                  std::int64_t, bool, MatrixView<float>);
template void rotate_heads<BFloat16>(const CpuStream&, MatrixView<const float>, VectorView<const std::int32_t>,
                                     std::int64_t, bool, MatrixView<BFloat16>);

}  // namespace reprise
