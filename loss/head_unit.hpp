#pragma once

#include <cstdint>

namespace reprise {

/// Plain arguments of the restricted head's kernels (restricted_head_simd.cpp): pointers and sizes of one piece of
/// work.

/// Tokens of one tile against the tile's candidates on this rank.
template <class T>
struct HeadUnit {
  const float* hidden;  ///< [tokens, depth]
  std::int64_t tokens, depth;
  const T* weight;          ///< this rank's rows of W
  const std::int32_t* ids;  ///< [num_ids] global
  std::int64_t num_ids;
  std::int64_t first_id;  ///< global id of weight's first row
  float scale, softcap;   ///< z = softcap tanh(scale x / softcap), or scale x
  float* logits;          ///< [num_ids, logits_stride], of which `tokens` columns belong to this unit
  std::int64_t logits_stride;
  float* accumulator;  ///< [tokens, depth] sum over candidates of exp(z - max) dz/dx W
  float* max;          ///< [tokens]
  float* sum_exp;      ///< [tokens] sum of exp(z - max)
};

/// One tile that lists a vocabulary row.
struct RowEntry {
  std::int32_t token;   ///< the tile's first token, counted in its panel of hidden states
  std::int32_t tokens;  ///< in the tile
  std::int64_t delta;   ///< where the row's deltas of these tokens start
};

/// Columns of a packed panel of hidden states: what one row's gradient keeps in registers.
inline constexpr std::int64_t kPanelColumns = 128;

}  // namespace reprise
