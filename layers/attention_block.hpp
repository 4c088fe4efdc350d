#pragma once

#include <cstdint>

namespace reprise {

// What the attention kernels are given: pointers to one head of one document. Plain data, because this header is seen
// by sources that are compiled for several instruction sets.

inline constexpr std::int64_t kKeyPanel = 64;        ///< keys that are packed side by side
inline constexpr std::int64_t kForwardQueries = 32;  ///< queries of a block of scores in the forward pass
inline constexpr std::int64_t kForwardKeys = 512;    ///< keys of it: longer documents take the online softmax
inline constexpr std::int64_t kBackwardQueries = 64;

template <class S>
struct AttentionHead {
  const S *q, *k, *v;
  std::int64_t q_stride, k_stride, v_stride;  ///< elements between rows
  S* output;
  std::int64_t output_stride;
  float* log_sum_exp;  ///< base 2, of the scaled scores; null: not wanted
  std::int64_t log_sum_exp_stride;
  std::int64_t queries, keys;  ///< query i reads keys [0, keys - queries + i]
  std::int64_t head_dim;
  float scale;
  float* scratch;
};

/// One key head and the `group` query heads that read it; those stand side by side.
template <class S>
struct AttentionHeadBackward {
  const S *q, *k, *v, *output, *d_output;
  std::int64_t q_stride, k_stride, v_stride, output_stride, d_output_stride;
  S *d_q, *d_k, *d_v;
  std::int64_t d_q_stride, d_k_stride, d_v_stride;
  const float* log_sum_exp;  ///< base 2
  std::int64_t log_sum_exp_stride;
  std::int64_t tokens, head_dim, group;
  float scale;
  float* scratch;
};

}  // namespace reprise
