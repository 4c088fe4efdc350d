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
  [[nodiscard]] MatrixView<float> table(const CpuStream& stream, Arena& arena,
                                        VectorView<const std::int32_t> positions) const;

  [[nodiscard]] const std::vector<float>& frequencies() const { return frequencies_; }

 private:
  std::vector<float> frequencies_;  // [head_dim / 2]
};

/// Rotates in place the first `heads` heads of every row of x [tokens, >= heads head_dim] by row table_rows[token] of
/// the table; `inverse` rotates back, which is the backward pass.
template <class T>
void rotate_heads(const CpuStream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x);

}  // namespace reprise
