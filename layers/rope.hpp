#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.hpp"
#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"
#include "layers/decoder_config.hpp"

namespace reprise {

/// Rotary position embedding in the half-rotation layout of Hugging Face: for i < head_dim / 2 and position p,
///   y[i] = x[i] cos(p f_i) - x[i + head_dim/2] sin(p f_i),  y[i + head_dim/2] = x[i + head_dim/2] cos + x[i] sin,
/// f_i = rope_theta^(-2 i / head_dim), slowed down for long wavelengths when rope_scaling is "llama3".
/// Frequencies and angles are rounded to float32 before cos and sin, as in the code that trained the checkpoints.
class RotaryEmbedding {
 public:
  explicit RotaryEmbedding(const DecoderConfig& config);

  /// [positions, head_dim]: one row per position, cos in the first half of the columns and sin in the second.
  [[nodiscard]] MatrixView<float> table(const Stream& stream, Arena& arena,
                                        VectorView<const std::int32_t> positions) const;

  [[nodiscard]] const std::vector<float>& frequencies() const { return frequencies_; }

 private:
  std::vector<float> frequencies_;  // [head_dim / 2]
};

/// RotaryEmbedding::table of `frequencies`, which are host memory on every device.
void rotary_table(const CpuStream& stream, VectorView<const float> frequencies,
                  VectorView<const std::int32_t> positions, MatrixView<float> table);
/// At most 512 frequencies: they travel as an argument of the kernel.
void rotary_table(const CudaStream& stream, VectorView<const float> frequencies,
                  VectorView<const std::int32_t> positions, MatrixView<float> table);
inline void rotary_table(const Stream& stream, VectorView<const float> frequencies,
                         VectorView<const std::int32_t> positions, MatrixView<float> table) {
  stream.visit([&](const auto& device) { rotary_table(device, frequencies, positions, table); });
}

/// Rotates in place the first `heads` heads of every row of x [tokens, >= heads head_dim] by row table_rows[token] of
/// the table; `inverse` rotates back, which is the backward pass.
template <class T>
void rotate_heads(const CpuStream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x);
template <class T>
void rotate_heads(const CudaStream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x);

template <class T>
void rotate_heads(const Stream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x) {
  stream.visit([&](const auto& device) { rotate_heads<T>(device, table, table_rows, heads, inverse, x); });
}

}  // namespace reprise
