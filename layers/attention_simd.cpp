#include "layers/packed_matrix_simd.hpp"

// Attention of one head: small matrix products on packed float32 panels with a softmax between them.

namespace reprise::REPRISE_SIMD {

namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// ---- blocks of scores ----------------------------------------------------------------------------------------------
// Causality is told by `first_visible`: query row i of a block reads the keys [0, first_visible + i) of it. That may be
// more than the block has, or less than nothing.

constexpr std::int64_t kRowGroup = 8;  // rows that share one causal limit in products

REPRISE_SIMD_INLINE std::int64_t clamp(std::int64_t x, std::int64_t low, std::int64_t high) {
  return larger(low, smaller(x, high));
}
REPRISE_SIMD_INLINE std::int64_t vectors_of(std::int64_t size) {
  return (size + kWidth - 1) / kWidth;
}

/// body(row, rows, visible keys) for groups of query rows; no row of a group reads a key behind those.
template <class Body>
REPRISE_SIMD_INLINE void for_row_groups(std::int64_t queries, std::int64_t keys, std::int64_t first_visible,
                                        Body body) {
  if (first_visible >= keys) {
    body(0, queries, keys);
    return;
  }
  for (std::int64_t row = 0; row < queries; row += kRowGroup) {
    const std::int64_t rows = smaller(kRowGroup, queries - row);
    const std::int64_t visible = clamp(first_visible + row + rows - 1, 0, keys);
    if (visible > 0) body(row, rows, visible);
  }
}

/// scores [queries, kKeyPanel of score_row] = left [queries, head_dim] right [head_dim, kKeyPanel] as far as visible.
void panel_scores(const float* left, std::int64_t padded, const float* right, std::int64_t queries,
                  std::int64_t first_visible, std::int64_t head_dim, float* scores, std::int64_t score_row) {
  for_row_groups(queries, kKeyPanel, first_visible, [&](std::int64_t row, std::int64_t rows, std::int64_t visible) {
    multiply(rows, vectors_of(visible), head_dim, {left + row * padded, padded, 1}, right, kKeyPanel,
             scores + row * score_row, score_row, false);
  });
}

/// sums [queries, padded] (+)= weights [queries, keys] values [keys, padded].
void weighted_rows(const float* weights, std::int64_t weight_row, const float* values, std::int64_t padded,
                   std::int64_t queries, std::int64_t keys, std::int64_t first_visible, float* sums, bool accumulate) {
  for_row_groups(queries, keys, first_visible, [&](std::int64_t row, std::int64_t rows, std::int64_t visible) {
    multiply(rows, padded / kWidth, visible, {weights + row * weight_row, weight_row, 1}, values, padded,
             sums + row * padded, padded, accumulate);
  });
}

/// sums [keys, padded] += transpose of weights [queries, keys] times rows [queries, padded].
void add_transposed_weighted_rows(const float* weights, const float* rows_of_queries, std::int64_t padded,
                                  std::int64_t queries, std::int64_t first_visible, std::int64_t keys, float* sums) {
  for (std::int64_t key = 0; key < keys; key += kRowGroup) {
    const std::int64_t group = smaller(kRowGroup, keys - key);
    const std::int64_t first = larger(0, key + 1 - first_visible);  // the first query that reads this group's first key
    if (first >= queries) return;
    multiply(group, padded / kWidth, queries - first, {weights + first * kKeyPanel + key, 1, kKeyPanel},
             rows_of_queries + first * padded, padded, sums + key * padded, padded, true);
  }
}

/// 2^x for x <= 0 to 2^-22 in relative terms, not below 2^-126; NaN stays NaN.
REPRISE_SIMD_INLINE Float exp2_of_negative(Float x) {
  x = x < -126.0f ? broadcast(-126.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Float shifted = x + kRound;
  const Float r = x - (shifted - kRound);
  Float p = broadcast(0x1.5bba14p-10f);
  p = fma(p, r, broadcast(0x1.3cea88p-7f));
  p = fma(p, r, broadcast(0x1.c6b752p-5f));
  p = fma(p, r, broadcast(0x1.ebf9bcp-3f));
  p = fma(p, r, broadcast(0x1.62e42ap-1f));
  p = fma(p, r, broadcast(1.0f));
  return bit_cast<Float>(bit_cast<UInt>(p) + (bit_cast<UInt>(shifted) << 23));  // p times 2^integer
}

/// Lanes of the vector at `at` that stand before `end`.
REPRISE_SIMD_INLINE Int lanes_before(std::int64_t at, std::int64_t end) {
  return iota() < static_cast<std::int32_t>(end - at);
}

/// Running softmax in base 2 of one query: scores [0, visible) become 2^(score - max), the lanes and the vector behind
/// them zero. Returns the factor by which earlier sums shrink.
REPRISE_SIMD_INLINE float softmax_row(float* scores, std::int64_t visible, float& row_max, float& sum_exp) {
  const Float lowest = broadcast(-__builtin_inff());
  const std::int64_t whole = visible / kWidth * kWidth;
  const Int seen = lanes_before(whole, visible);
  const Float tail = select(seen, load(scores + whole), lowest);
  Float largest = max_or_second(tail, lowest), other = lowest;
  std::int64_t at = 0;
  for (; at + 2 * kWidth <= whole; at += 2 * kWidth) {
    largest = max_or_second(load(scores + at), largest);
    other = max_or_second(load(scores + at + kWidth), other);
  }
  if (at < whole) other = max_or_second(load(scores + at), other);
  const float block_max = reduce_max(max_or_second(largest, other)),
              new_max = block_max > row_max ? block_max : row_max;
  Float sum = select(seen, exp2_of_negative(tail - new_max), zero());
  store(scores + whole, sum);
  store(scores + whole + kWidth, zero());
  for (at = 0; at < whole; at += kWidth) {
    const Float p = exp2_of_negative(load(scores + at) - new_max);
    store(scores + at, p);
    sum += p;
  }
  const float shrink = exp2_of_negative(broadcast(row_max - new_max))[0];
  row_max = new_max;
  sum_exp = sum_exp * shrink + reduce_add(sum);
  return shrink;
}

void scale_row(float* row, std::int64_t padded, float factor) {
  for (std::int64_t c = 0; c < padded; c += kWidth) store(row + c, load(row + c) * factor);
}

constexpr std::int64_t kScoreRow = kForwardKeys + 2 * kRowUnit;  // softmax_row may clear two vectors behind the keys

/// The packed keys and values of a head, and blocks for its queries.
struct ForwardScratch {
  float *keys_t, *values;  // [panels, head_dim, kKeyPanel], [keys to whole panels, padded]
  float *query, *sums;     // [kForwardQueries, padded]
  float* scores;           // [kForwardQueries, kScoreRow]
};

/// One block of queries against kForwardKeys keys from `key` on.
void forward_block(const ForwardScratch& scratch, std::int64_t head_dim, std::int64_t queries, std::int64_t key,
                   std::int64_t keys, std::int64_t first_visible, float* row_max, float* sum_exp) {
  const std::int64_t padded = padded_size(head_dim);
  for (std::int64_t panel = 0; panel < keys && first_visible + queries - 1 > panel; panel += kKeyPanel) {
    panel_scores(scratch.query, padded, scratch.keys_t + (key + panel) * head_dim, queries, first_visible - panel,
                 head_dim, scratch.scores + panel, kScoreRow);
  }
  for (std::int64_t i = 0; i < queries; ++i) {
    float* scores = scratch.scores + i * kScoreRow;
    const std::int64_t visible = clamp(first_visible + i, 0, keys);
    if (visible == 0) {
      clear(scores, kRowUnit);  // rows of its group may see up to kRowGroup keys
      continue;
    }
    const float shrink = softmax_row(scores, visible, row_max[i], sum_exp[i]);
    if (key > 0) scale_row(scratch.sums + i * padded, padded, shrink);
  }
  weighted_rows(scratch.scores, kScoreRow, scratch.values + key * padded, padded, queries, keys, first_visible,
                scratch.sums, key > 0);
}

template <class S>
void forward_head(const AttentionHead<S>& head) {
  const std::int64_t dim = head.head_dim, padded = padded_size(dim), offset = head.keys - head.queries;
  const std::int64_t packed_keys = (head.keys + kKeyPanel - 1) / kKeyPanel * kKeyPanel;
  ForwardScratch scratch{};
  scratch.keys_t = head.scratch;
  scratch.values = scratch.keys_t + packed_keys * dim;
  scratch.query = scratch.values + packed_keys * padded;
  scratch.sums = scratch.query + kForwardQueries * padded;
  scratch.scores = scratch.sums + kForwardQueries * padded;
  float row_max[kForwardQueries], sum_exp[kForwardQueries];

  for (std::int64_t key = 0; key < head.keys; key += kKeyPanel) {
    pack_transposed(head.k + key * head.k_stride, head.k_stride, smaller(kKeyPanel, head.keys - key), dim,
                    scratch.keys_t + key * dim);
  }
  pack_rows(head.v, head.v_stride, head.keys, dim, 1.0f, scratch.values);
  for (std::int64_t begin = 0; begin < head.queries; begin += kForwardQueries) {
    const std::int64_t queries = smaller(kForwardQueries, head.queries - begin);
    pack_rows(head.q + begin * head.q_stride, head.q_stride, queries, dim, head.scale * kLog2E, scratch.query);
    for (std::int64_t i = 0; i < queries; ++i) {
      row_max[i] = -__builtin_inff();
      sum_exp[i] = 0.0f;
    }
    const std::int64_t visible = offset + begin + queries;
    for (std::int64_t key = 0; key < visible; key += kForwardKeys) {
      forward_block(scratch, dim, queries, key, smaller(kForwardKeys, head.keys - key), offset + begin + 1 - key,
                    row_max, sum_exp);
    }
    for (std::int64_t i = 0; i < queries; ++i) {
      scale_row(scratch.sums + i * padded, padded, 1.0f / sum_exp[i]);
      if (head.log_sum_exp == nullptr) continue;
      head.log_sum_exp[(begin + i) * head.log_sum_exp_stride] = row_max[i] + log(broadcast(sum_exp[i]))[0] * kLog2E;
    }
    unpack_rows(scratch.sums, queries, dim, 1.0f, head.output + begin * head.output_stride, head.output_stride);
  }
}

/// scores become the probabilities 2^(score - log_sum_exp), d_scores = probabilities (d_probabilities - delta), both in
/// place; what causality hides becomes zero.
void softmax_backward_rows(float* scores, float* d_scores, const float* log_sum_exp, std::int64_t stride,
                           const float* delta, std::int64_t queries, std::int64_t first_visible) {
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t visible = clamp(first_visible + i, 0, kKeyPanel), whole = visible / kWidth * kWidth;
    float *p_row = scores + i * kKeyPanel, *d_row = d_scores + i * kKeyPanel;
    const float normaliser = log_sum_exp[i * stride];
    for (std::int64_t at = 0; at < whole; at += kWidth) {
      const Float p = exp2_of_negative(load(p_row + at) - normaliser);
      store(p_row + at, p);
      store(d_row + at, p * (load(d_row + at) - delta[i]));
    }
    for (std::int64_t at = whole; at < kKeyPanel; at += kWidth) {
      const Int seen = lanes_before(at, visible);
      const Float p = select(seen, exp2_of_negative(load(p_row + at) - normaliser), zero());
      store(p_row + at, p);
      store(d_row + at, select(seen, p * (load(d_row + at) - delta[i]), zero()));
    }
  }
}

template <class S>
float dot(const S* a, const S* b, std::int64_t size) {
  Float sum = zero();
  std::int64_t c = 0;
  for (; c + kWidth <= size; c += kWidth) sum = fma(load(a + c), load(b + c), sum);
  if (c < size) sum = fma(load_partial(a + c, size - c), load_partial(b + c, size - c), sum);
  return reduce_add(sum);
}

/// Packed rows of one key head and of the query head at work.
struct BackwardScratch {
  float *d_key, *d_value, *query, *d_output, *d_query;  // [tokens, padded]; query is scaled
  float* delta;                                         // [tokens], <d_o, o>
  float *keys_t, *values_t;                             // [head_dim, kKeyPanel]
  float* keys;                                          // [kKeyPanel, padded]
  float *scores, *d_scores;                             // [kBackwardQueries, kKeyPanel]
};

BackwardScratch backward_scratch(float* memory, std::int64_t tokens, std::int64_t head_dim) {
  const std::int64_t padded = padded_size(head_dim), whole = tokens * padded;
  BackwardScratch scratch{};
  scratch.d_key = memory;
  scratch.d_value = scratch.d_key + whole;
  scratch.query = scratch.d_value + whole;
  scratch.d_output = scratch.query + whole;
  scratch.d_query = scratch.d_output + whole;
  scratch.delta = scratch.d_query + whole;
  scratch.keys_t = scratch.delta + padded_size(tokens);
  scratch.values_t = scratch.keys_t + head_dim * kKeyPanel;
  scratch.keys = scratch.values_t + head_dim * kKeyPanel;
  scratch.scores = scratch.keys + kKeyPanel * padded;
  scratch.d_scores = scratch.scores + kBackwardQueries * kKeyPanel;
  return scratch;
}

/// All queries against the panel of keys at `key`.
template <class S>
void backward_panel(const AttentionHeadBackward<S>& head, const BackwardScratch& scratch, const float* log_sum_exp,
                    std::int64_t key) {
  const std::int64_t tokens = head.tokens, dim = head.head_dim, padded = padded_size(dim);
  const std::int64_t keys = smaller(kKeyPanel, tokens - key);
  pack_transposed(head.k + key * head.k_stride, head.k_stride, keys, dim, scratch.keys_t);
  pack_transposed(head.v + key * head.v_stride, head.v_stride, keys, dim, scratch.values_t);
  pack_rows(head.k + key * head.k_stride, head.k_stride, keys, dim, 1.0f, scratch.keys);
  for (std::int64_t begin = key / kBackwardQueries * kBackwardQueries; begin < tokens; begin += kBackwardQueries) {
    const std::int64_t queries = smaller(kBackwardQueries, tokens - begin), first_visible = begin + 1 - key;
    const float *query = scratch.query + begin * padded, *d_output = scratch.d_output + begin * padded;
    panel_scores(query, padded, scratch.keys_t, queries, first_visible, dim, scratch.scores, kKeyPanel);
    panel_scores(d_output, padded, scratch.values_t, queries, first_visible, dim, scratch.d_scores, kKeyPanel);
    softmax_backward_rows(scratch.scores, scratch.d_scores, log_sum_exp + begin * head.log_sum_exp_stride,
                          head.log_sum_exp_stride, scratch.delta + begin, queries, first_visible);
    add_transposed_weighted_rows(scratch.scores, d_output, padded, queries, first_visible, keys,
                                 scratch.d_value + key * padded);
    add_transposed_weighted_rows(scratch.d_scores, query, padded, queries, first_visible, keys,
                                 scratch.d_key + key * padded);
    weighted_rows(scratch.d_scores, kKeyPanel, scratch.keys, padded, queries, keys, first_visible,
                  scratch.d_query + begin * padded, true);
  }
}

template <class S>
void backward_head(const AttentionHeadBackward<S>& head) {
  const std::int64_t tokens = head.tokens, dim = head.head_dim, padded = padded_size(dim);
  const BackwardScratch scratch = backward_scratch(head.scratch, tokens, dim);
  clear(scratch.d_key, tokens * padded);
  clear(scratch.d_value, tokens * padded);
  for (std::int64_t g = 0; g < head.group; ++g) {
    const S *output = head.output + g * dim, *d_output = head.d_output + g * dim;
    pack_rows(head.q + g * dim, head.q_stride, tokens, dim, head.scale * kLog2E, scratch.query);
    pack_rows(d_output, head.d_output_stride, tokens, dim, 1.0f, scratch.d_output);
    clear(scratch.d_query, tokens * padded);
    for (std::int64_t t = 0; t < tokens; ++t) {
      scratch.delta[t] = dot(output + t * head.output_stride, d_output + t * head.d_output_stride, dim);
    }
    for (std::int64_t key = 0; key < tokens; key += kKeyPanel) {
      backward_panel(head, scratch, head.log_sum_exp + g, key);
    }
    unpack_rows(scratch.d_query, tokens, dim, head.scale, head.d_q + g * dim, head.d_q_stride);
  }
  unpack_rows(scratch.d_key, tokens, dim, kLn2, head.d_k, head.d_k_stride);  // undoes the query's log2(e)
  unpack_rows(scratch.d_value, tokens, dim, 1.0f, head.d_v, head.d_v_stride);
}

}  // namespace

void attention_head(const AttentionHead<float>& head) {
  forward_head(head);
}
void attention_head(const AttentionHead<std::uint16_t>& head) {
  forward_head(head);
}
void attention_head_backward(const AttentionHeadBackward<float>& head) {
  backward_head(head);
}
void attention_head_backward(const AttentionHeadBackward<std::uint16_t>& head) {
  backward_head(head);
}

}  // namespace reprise::REPRISE_SIMD
