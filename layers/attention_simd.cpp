#include "core/simd.hpp"
#include "layers/attention_block.hpp"

// Attention of one head: small matrix products on packed float32 panels with a softmax between them.
// Rows of packed matrices are padded with zeros to whole vectors; `padded` is that row length.

namespace reprise::REPRISE_SIMD {

namespace {

constexpr std::int64_t kPanel = 16;  // packed rows are multiples of the widest vector, whatever the level
constexpr std::int64_t kVectorsOfBlock = kKeyBlock / kWidth;
static_assert(kKeyBlock % kPanel == 0);

REPRISE_SIMD_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
REPRISE_SIMD_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a < b ? b : a;
}
REPRISE_SIMD_INLINE std::int64_t padded_size(std::int64_t size) {
  return (size + kPanel - 1) / kPanel * kPanel;
}
REPRISE_SIMD_INLINE float scalar(float x) {
  return x;
}
REPRISE_SIMD_INLINE float scalar(std::uint16_t bits) {
  const std::uint32_t raw = static_cast<std::uint32_t>(bits) << 16;
  float x;
  __builtin_memcpy(&x, &raw, sizeof(x));
  return x;
}

// ---- products: c[m, n] (+)= sum_k a(m, k) b[k, n]
// --------------------------------------------------------------------

/// Left operand: element (m, k) stands at data[m * row + k * step], so that a transpose is another pair of strides.
struct Left {
  const float* data;
  std::int64_t row, step;
};

template <int kRows, int kVectors>
REPRISE_SIMD_INLINE void multiply_tile(Left a, const float* b, std::int64_t b_row, std::int64_t depth, float* c,
                                       std::int64_t c_row, bool accumulate) {
  Float sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[m][n] = accumulate ? load(c + m * c_row + n * kWidth) : zero();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Float right[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) right[n] = load(b + k * b_row + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Float left = broadcast(a.data[m * a.row + k * a.step]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[m][n] = fma(left, right[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) store(c + m * c_row + n * kWidth, sum[m][n]);
  }
}

template <int kVectors>
REPRISE_SIMD_INLINE void multiply_columns(std::int64_t rows, Left a, const float* b, std::int64_t b_row,
                                          std::int64_t depth, float* c, std::int64_t c_row, bool accumulate) {
  std::int64_t m = 0;
  const auto tile = [&]<int kRows>() __attribute__((always_inline)) {
    for (; m + kRows <= rows; m += kRows) {
      multiply_tile<kRows, kVectors>({a.data + m * a.row, a.row, a.step}, b, b_row, depth, c + m * c_row, c_row,
                                     accumulate);
    }
  };
#if REPRISE_SIMD_WIDTH == 16
  if constexpr (kVectors <= 3) tile.template operator()<8>();
#endif
  tile.template operator()<4>();
  tile.template operator()<2>();
  tile.template operator()<1>();
}

/// c [rows, vectors whole vectors]. Few rows at a time keep all sums in registers.
void multiply(std::int64_t rows, std::int64_t vectors, std::int64_t depth, Left a, const float* b, std::int64_t b_row,
              float* c, std::int64_t c_row, bool accumulate) {
  std::int64_t n = 0;
#if REPRISE_SIMD_WIDTH == 16
  for (; n + 4 <= vectors && vectors - n != 5 && vectors - n != 6; n += 4) {
    multiply_columns<4>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
#endif
  for (; n + 3 <= vectors; n += 3) {
    multiply_columns<3>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
  for (; n + 2 <= vectors; n += 2) {
    multiply_columns<2>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
  for (; n < vectors; ++n) {
    multiply_columns<1>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
}

// ---- packing -------------------------------------------------------------------------------------------------------

/// to [rows, padded] = scale * from.
template <class S>
void pack_rows(const S* from, std::int64_t stride, std::int64_t rows, std::int64_t cols, float scale, float* to) {
  const std::int64_t padded = padded_size(cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    const S* in = from + row * stride;
    float* out = to + row * padded;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(out + c, load(in + c) * scale);
    for (; c < padded; c += kWidth) {
      store(out + c, load_partial(in + smaller(c, cols), larger(0, smaller(cols - c, kWidth))) * scale);
    }
  }
}

/// to [cols, kKeyBlock] = transpose of from [rows, cols]; columns behind `rows` are zero.
template <class S>
void pack_transposed(const S* from, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S* in = from + row * stride;
    for (std::int64_t c = 0; c < cols; ++c) to[c * kKeyBlock + row] = scalar(in[c]);
  }
  for (std::int64_t c = 0; c < cols && rows < kKeyBlock; ++c) {
    for (std::int64_t row = rows; row < kKeyBlock; ++row) to[c * kKeyBlock + row] = 0.0f;
  }
}

template <class S>
void unpack_rows(const float* from, std::int64_t rows, std::int64_t cols, float scale, S* to, std::int64_t stride) {
  const std::int64_t padded = padded_size(cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* in = from + row * padded;
    S* out = to + row * stride;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(out + c, load(in + c) * scale);
    if (c < cols) store_partial(out + c, load(in + c) * scale, cols - c);
  }
}

void clear(float* to, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) to[i] = 0.0f;
}

// ---- one block of scores -------------------------------------------------------------------------------------------

constexpr std::int64_t kRowGroup = 8;  // rows that share one causal limit in products

/// Keys of a block that query row `row` of it may read, from the first row's number, which may be above kKeyBlock.
REPRISE_SIMD_INLINE std::int64_t visible(std::int64_t first_visible, std::int64_t row) {
  return larger(0, smaller(kKeyBlock, first_visible + row));
}

/// body(row, rows, keys) for groups of query rows; no row of the group reads a key behind `keys`.
template <class Body>
REPRISE_SIMD_INLINE void for_row_groups(std::int64_t queries, std::int64_t first_visible, Body body) {
  if (first_visible >= kKeyBlock) {
    body(0, queries, kKeyBlock);
    return;
  }
  for (std::int64_t row = 0; row < queries; row += kRowGroup) {
    const std::int64_t rows = smaller(kRowGroup, queries - row);
    const std::int64_t keys = visible(first_visible, row + rows - 1);
    if (keys > 0) body(row, rows, keys);
  }
}

REPRISE_SIMD_INLINE std::int64_t vectors_of(std::int64_t size) {
  return (size + kWidth - 1) / kWidth;
}

/// scores [queries, kKeyBlock] = left [queries, head_dim] right [head_dim, kKeyBlock] where causality lets them be
/// read.
void block_scores(const float* left, std::int64_t padded, const float* right, std::int64_t queries,
                  std::int64_t first_visible, std::int64_t head_dim, float* scores) {
  for_row_groups(queries, first_visible, [&](std::int64_t row, std::int64_t rows, std::int64_t keys) {
    multiply(rows, vectors_of(keys), head_dim, {left + row * padded, padded, 1}, right, kKeyBlock,
             scores + row * kKeyBlock, kKeyBlock, false);
  });
}

/// sums [queries, padded] += weights [queries, kKeyBlock] values [keys, padded].
void add_weighted_rows(const float* weights, const float* values, std::int64_t padded, std::int64_t queries,
                       std::int64_t first_visible, float* sums) {
  for_row_groups(queries, first_visible, [&](std::int64_t row, std::int64_t rows, std::int64_t keys) {
    multiply(rows, padded / kWidth, keys, {weights + row * kKeyBlock, kKeyBlock, 1}, values, padded,
             sums + row * padded, padded, true);
  });
}

/// sums [keys, padded] += transpose of weights [queries, kKeyBlock] times rows [queries, padded].
void add_transposed_weighted_rows(const float* weights, const float* rows_of_queries, std::int64_t padded,
                                  std::int64_t queries, std::int64_t first_visible, std::int64_t keys, float* sums) {
  for (std::int64_t key = 0; key < keys; key += kRowGroup) {
    const std::int64_t group = smaller(kRowGroup, keys - key);
    const std::int64_t first = larger(0, key + 1 - first_visible);  // the first query that reads this group's first key
    if (first >= queries) return;
    multiply(group, padded / kWidth, queries - first, {weights + first * kKeyBlock + key, 1, kKeyBlock},
             rows_of_queries + first * padded, padded, sums + key * padded, padded, true);
  }
}

/// Running softmax of one query: scores become exp(score - max), earlier sums shrink by the factor that is returned.
REPRISE_SIMD_INLINE float softmax_row(float* scores, std::int64_t keys, float& row_max, float& sum_exp) {
  const Float lowest = broadcast(-__builtin_inff());
  Float largest = lowest;
  for (std::int64_t v = 0; v < vectors_of(keys); ++v) {
    const Int seen = iota() + static_cast<std::int32_t>(v * kWidth) < static_cast<std::int32_t>(keys);
    const Float x = select(seen, load(scores + v * kWidth), lowest);
    store(scores + v * kWidth, x);
    largest = max_or_second(x, largest);
  }
  const float block_max = reduce_max(largest), new_max = block_max > row_max ? block_max : row_max;
  Float sum = zero();
  for (std::int64_t v = 0; v < vectors_of(keys); ++v) {
    const Float p = exp(load(scores + v * kWidth) - new_max);
    store(scores + v * kWidth, p);
    sum += p;
  }
  for (std::int64_t v = vectors_of(keys); v < kVectorsOfBlock; ++v) store(scores + v * kWidth, zero());
  const float shrink = exp(broadcast(row_max - new_max))[0];
  row_max = new_max;
  sum_exp = sum_exp * shrink + reduce_add(sum);
  return shrink;
}

void scale_row(float* row, std::int64_t padded, float factor) {
  for (std::int64_t c = 0; c < padded; c += kWidth) store(row + c, load(row + c) * factor);
}

template <class S>
void forward_head(const AttentionHead<S>& head) {
  const std::int64_t padded = padded_size(head.head_dim), offset = head.keys - head.queries;
  const std::int64_t key_blocks = (head.keys + kKeyBlock - 1) / kKeyBlock;
  float* keys_t = head.scratch;                                     // [key_blocks, head_dim, kKeyBlock]
  float* values = keys_t + key_blocks * head.head_dim * kKeyBlock;  // [keys, padded]
  float* query = values + key_blocks * kKeyBlock * padded;          // [kQueryBlock, padded]
  float* sums = query + kQueryBlock * padded;                       // [kQueryBlock, padded]
  float* scores = sums + kQueryBlock * padded;                      // [kQueryBlock, kKeyBlock]
  float row_max[kQueryBlock], sum_exp[kQueryBlock];

  for (std::int64_t block = 0; block < key_blocks; ++block) {
    const std::int64_t begin = block * kKeyBlock, keys = smaller(kKeyBlock, head.keys - begin);
    pack_transposed(head.k + begin * head.k_stride, head.k_stride, keys, head.head_dim,
                    keys_t + block * head.head_dim * kKeyBlock);
  }
  pack_rows(head.v, head.v_stride, head.keys, head.head_dim, 1.0f, values);
  for (std::int64_t begin = 0; begin < head.queries; begin += kQueryBlock) {
    const std::int64_t queries = smaller(kQueryBlock, head.queries - begin);
    pack_rows(head.q + begin * head.q_stride, head.q_stride, queries, head.head_dim, head.scale, query);
    clear(sums, queries * padded);
    for (std::int64_t i = 0; i < queries; ++i) row_max[i] = -__builtin_inff(), sum_exp[i] = 0.0f;
    for (std::int64_t block = 0; block < key_blocks; ++block) {
      const std::int64_t first_visible = offset + begin + 1 - block * kKeyBlock;
      if (first_visible + queries - 1 <= 0) break;
      block_scores(query, padded, keys_t + block * head.head_dim * kKeyBlock, queries, first_visible, head.head_dim,
                   scores);
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t keys = visible(first_visible, i);
        if (keys == 0) {
          clear(scores + i * kKeyBlock, kKeyBlock);
          continue;
        }
        const float shrink = softmax_row(scores + i * kKeyBlock, keys, row_max[i], sum_exp[i]);
        if (block > 0) scale_row(sums + i * padded, padded, shrink);
      }
      add_weighted_rows(scores, values + block * kKeyBlock * padded, padded, queries, first_visible, sums);
    }
    for (std::int64_t i = 0; i < queries; ++i) {
      scale_row(sums + i * padded, padded, 1.0f / sum_exp[i]);
      if (head.log_sum_exp != nullptr) {
        head.log_sum_exp[(begin + i) * head.log_sum_exp_stride] = row_max[i] + log(broadcast(sum_exp[i]))[0];
      }
    }
    unpack_rows(sums, queries, head.head_dim, 1.0f, head.output + begin * head.output_stride, head.output_stride);
  }
}

/// probabilities = exp(scores - log_sum_exp) and d_scores = probabilities (d_probabilities - delta), in place; what
/// causality hides becomes zero.
void softmax_backward_rows(float* scores, float* d_scores, const float* log_sum_exp, std::int64_t stride,
                           const float* delta, std::int64_t queries, std::int64_t first_visible) {
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t keys = visible(first_visible, i);
    float *p_row = scores + i * kKeyBlock, *d_row = d_scores + i * kKeyBlock;
    for (std::int64_t v = 0; v < kVectorsOfBlock; ++v) {
      const std::int64_t at = v * kWidth;
      if (at >= keys) {
        store(p_row + at, zero());
        store(d_row + at, zero());
        continue;
      }
      const Int seen = iota() + static_cast<std::int32_t>(at) < static_cast<std::int32_t>(keys);
      const Float p = exp(load(p_row + at) - log_sum_exp[i * stride]);
      store(p_row + at, select(seen, p, zero()));
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

template <class S>
void backward_head(const AttentionHeadBackward<S>& head) {
  const std::int64_t tokens = head.tokens, dim = head.head_dim, padded = padded_size(dim);
  float* d_key = head.scratch;  // [tokens, padded], as the next four
  float* d_value = d_key + tokens * padded;
  float* query = d_value + tokens * padded;  // scaled
  float* d_output = query + tokens * padded;
  float* d_query = d_output + tokens * padded;
  float* delta = d_query + tokens * padded;     // [tokens, padded to a whole panel]
  float* keys_t = delta + padded_size(tokens);  // [dim, kKeyBlock]
  float* values_t = keys_t + dim * kKeyBlock;   // [dim, kKeyBlock]
  float* keys = values_t + dim * kKeyBlock;     // [kKeyBlock, padded]
  float* scores = keys + kKeyBlock * padded;    // [kQueryBlock, kKeyBlock]
  float* d_scores = scores + kQueryBlock * kKeyBlock;

  clear(d_key, 2 * tokens * padded);
  for (std::int64_t g = 0; g < head.group; ++g) {
    const S *output_g = head.output + g * dim, *d_output_g = head.d_output + g * dim;
    pack_rows(head.q + g * dim, head.q_stride, tokens, dim, head.scale, query);
    pack_rows(d_output_g, head.d_output_stride, tokens, dim, 1.0f, d_output);
    clear(d_query, tokens * padded);
    for (std::int64_t t = 0; t < tokens; ++t) {
      delta[t] = dot(output_g + t * head.output_stride, d_output_g + t * head.d_output_stride, dim);
    }
    for (std::int64_t key = 0; key < tokens; key += kKeyBlock) {
      const std::int64_t block_keys = smaller(kKeyBlock, tokens - key);
      pack_transposed(head.k + key * head.k_stride, head.k_stride, block_keys, dim, keys_t);
      pack_transposed(head.v + key * head.v_stride, head.v_stride, block_keys, dim, values_t);
      pack_rows(head.k + key * head.k_stride, head.k_stride, block_keys, dim, 1.0f, keys);
      for (std::int64_t begin = key / kQueryBlock * kQueryBlock; begin < tokens; begin += kQueryBlock) {
        const std::int64_t queries = smaller(kQueryBlock, tokens - begin), first_visible = begin + 1 - key;
        block_scores(query + begin * padded, padded, keys_t, queries, first_visible, dim, scores);
        block_scores(d_output + begin * padded, padded, values_t, queries, first_visible, dim, d_scores);
        softmax_backward_rows(scores, d_scores, head.log_sum_exp + begin * head.log_sum_exp_stride + g,
                              head.log_sum_exp_stride, delta + begin, queries, first_visible);
        add_transposed_weighted_rows(scores, d_output + begin * padded, padded, queries, first_visible, block_keys,
                                     d_value + key * padded);
        add_transposed_weighted_rows(d_scores, query + begin * padded, padded, queries, first_visible, block_keys,
                                     d_key + key * padded);
        add_weighted_rows(d_scores, keys, padded, queries, first_visible, d_query + begin * padded);
      }
    }
    unpack_rows(d_query, tokens, dim, head.scale, head.d_q + g * dim, head.d_q_stride);
  }
  unpack_rows(d_key, tokens, dim, 1.0f, head.d_k, head.d_k_stride);
  unpack_rows(d_value, tokens, dim, 1.0f, head.d_v, head.d_v_stride);
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
