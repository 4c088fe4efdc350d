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
  float* scratch;      ///< [2 tokens, depth rounded up to 16]
  float* max;          ///< [tokens]
  float* sum_exp;      ///< [tokens] sum of exp(z - max)
};

/// One token that lists a vocabulary row.
struct RowEntry {
  std::int32_t token;  ///< counted in its panel of hidden states
  float delta;
};

/// Columns of a packed panel of hidden states or of row gradients.
inline constexpr std::int64_t kPanelColumns = 128;

}  // namespace reprise
