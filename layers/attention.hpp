#pragma once

#include <cstdint>

#include "core/arena.hpp"
#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// The heads of this rank; query head h reads key/value head h / (num_heads / num_kv_heads).
struct AttentionShape {
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
};

/// Heads side by side within rows that stand `stride` elements apart: head h of row t begins at t * stride + h *
/// head_dim.
template <class T>
struct HeadRows {
  T* data = nullptr;
  std::int64_t stride = 0;
};

// Every op has an overload for each device and one for Stream. offsets and lengths are host memory, the rest lies on
// the stream's device. On a GPU nothing waits for the host; the list of tiles that is worked out from the offsets is
// copied there, and products of bfloat16 run on tensor cores where head_dim is a multiple of 8 up to 128 and rows are
// aligned to 16 bytes: then p and d_s are rounded to bfloat16, as right operands are, before they are multiplied with
// v, k, q and d_o. Other cases are float32 arithmetic; head_dim is limited there by shared memory, to some 256.

/// Causal grouped-query attention within each document:
///   o_t = sum_{j <= t} p_tj v_j,  p_t = softmax_j(<q_t, k_j> / sqrt(head_dim)).
/// Scores are made in blocks (of at most 32 x 512 on a CPU) by an online softmax in float32; no [tokens, tokens] buffer
/// exists.
/// q, output [tokens, num_heads heads], k, v [tokens, num_kv_heads heads], offsets [documents + 1] as in TokenBatch.
/// log_sum_exp [tokens, num_heads], in base 2 of the scaled scores, is what backward needs beside q, k, v and output.
template <class T>
void attention(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
               VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
               HeadRows<T> output, MatrixView<float> log_sum_exp);
template <class T>
void attention(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
               VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
               HeadRows<T> output, MatrixView<float> log_sum_exp);
template <class T>
void attention(const Stream& stream, Arena& arena, const AttentionShape& shape, VectorView<const std::int64_t> offsets,
               HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v, HeadRows<T> output,
               MatrixView<float> log_sum_exp) {
  stream.visit([&](const auto& device) { attention<T>(device, arena, shape, offsets, q, k, v, output, log_sum_exp); });
}

/// With p rebuilt block by block from log_sum_exp, d_p_tj = <d_o_t, v_j> and d_s_tj = p_tj (d_p_tj - <d_o_t, o_t>):
///   d_q_t = sum_j d_s_tj k_j / sqrt(head_dim),  d_k_j = sum_t d_s_tj q_t / sqrt(head_dim),  d_v_j = sum_t p_tj d_o_t,
/// all overwritten; query heads that share a key head add up in head order on a CPU, where the unit of work is one key
/// head of one document, and in (token, head) order on a GPU. Sums have the same bits for every thread count and run.
template <class T>
void attention_backward(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
                        VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k,
                        HeadRows<const T> v, HeadRows<const T> output, MatrixView<const float> log_sum_exp,
                        HeadRows<const T> d_output, HeadRows<T> d_q, HeadRows<T> d_k, HeadRows<T> d_v);
template <class T>
void attention_backward(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
                        VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k,
                        HeadRows<const T> v, HeadRows<const T> output, MatrixView<const float> log_sum_exp,
                        HeadRows<const T> d_output, HeadRows<T> d_q, HeadRows<T> d_k, HeadRows<T> d_v);
template <class T>
void attention_backward(const Stream& stream, Arena& arena, const AttentionShape& shape,
                        VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k,
                        HeadRows<const T> v, HeadRows<const T> output, MatrixView<const float> log_sum_exp,
                        HeadRows<const T> d_output, HeadRows<T> d_q, HeadRows<T> d_k, HeadRows<T> d_v) {
  stream.visit([&](const auto& device) {
    attention_backward<T>(device, arena, shape, offsets, q, k, v, output, log_sum_exp, d_output, d_q, d_k, d_v);
  });
}

/// The last queries of sequences whose keys and values are kept elsewhere. Sequence d has the query rows
/// [offsets[d], offsets[d + 1]) and lengths[d] keys, its own last tokens included, which begin at row d * max_length.
template <class T>
void cached_attention(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
                      VectorView<const std::int64_t> offsets, VectorView<const std::int64_t> lengths,
                      std::int64_t max_length, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
                      HeadRows<T> output);
template <class T>
void cached_attention(const CudaStream& stream, Arena& arena, const AttentionShape& shape,
                      VectorView<const std::int64_t> offsets, VectorView<const std::int64_t> lengths,
                      std::int64_t max_length, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
                      HeadRows<T> output);
template <class T>
void cached_attention(const Stream& stream, Arena& arena, const AttentionShape& shape,
                      VectorView<const std::int64_t> offsets, VectorView<const std::int64_t> lengths,
                      std::int64_t max_length, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
                      HeadRows<T> output) {
  stream.visit([&](const auto& device) {
    cached_attention<T>(device, arena, shape, offsets, lengths, max_length, q, k, v, output);
  });
}

}  // namespace reprise
