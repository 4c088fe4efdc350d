#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/view.hpp"
#include "layers/attention.hpp"

namespace reprise::detail {

// What the CUDA kernels of attention are given. The `group` query heads that read one key head are seen as rows of one
// matrix, token by token: row i of a document is its query i / group and head i % group of the group. A tile of rows
// then reads each key once for all heads of the group, and short sequences fill a tile all the same.

/// A block's share of a document: rows (or keys) from `begin` on, as many as the kernel's tile has.
struct AttentionTile {
  std::int64_t first_query;  ///< the document's first row in q
  std::int64_t first_key;    ///< and in k and v
  std::int32_t rows;         ///< of the document: queries * group
  std::int32_t keys;
  std::int32_t hidden;  ///< query i sees keys [0, hidden + i]
  std::int32_t begin;
};

/// How rows are found, the same for all tiles.
struct AttentionHeads {
  std::int32_t num_heads, num_kv_heads, group, head_dim;
  std::uint32_t group_inverse;  ///< 2^32 / group, rounded up
  float scale;                  ///< 1 / sqrt(head_dim)

  __device__ int query_of(int row) const {
    return group == 1 ? row : static_cast<int>(__umulhi(static_cast<unsigned>(row), group_inverse));
  }
  /// Keys that a row of the tile's document sees.
  __device__ int visible(const AttentionTile& tile, int row) const { return tile.hidden + query_of(row) + 1; }
  /// The first row that sees `key`.
  __device__ int first_row(const AttentionTile& tile, int key) const { return max(0, key - tile.hidden) * group; }

  // Offsets within a document are 32 x 32 bit products, one instruction; what is in front of them does not change.
  template <class T>
  __device__ T* query_row(HeadRows<T> x, const AttentionTile& tile, int kv_head, int row) const {
    T* const document = x.data + tile.first_query * x.stride + kv_head * group * head_dim;
    const int query = query_of(row);
    return document + std::int64_t{query} * static_cast<int>(x.stride) + (row - query * group) * head_dim;
  }
  template <class T>
  __device__ T* key_row(HeadRows<T> x, const AttentionTile& tile, int kv_head, int key) const {
    T* const document = x.data + tile.first_key * x.stride + kv_head * head_dim;
    return document + std::int64_t{key} * static_cast<int>(x.stride);
  }
  /// Of a row in [tokens, num_heads].
  __device__ std::int64_t scalar_index(const AttentionTile& tile, int kv_head, int row) const {
    const int query = query_of(row), head = kv_head * group + row - query * group;
    return (tile.first_query + query) * num_heads + head;
  }
};

constexpr float kLog2E = 1.44269504f;

template <class T>
struct AttentionForward {
  AttentionHeads heads;
  VectorView<const AttentionTile> tiles;  ///< on the device, those with most work first
  HeadRows<const T> q, k, v;
  HeadRows<T> output;
  float* log_sum_exp;  ///< null: not wanted
};

template <class T>
struct AttentionBackward {
  AttentionHeads heads;
  VectorView<const AttentionTile> query_tiles, key_tiles;
  HeadRows<const T> q, k, v, d_output;
  const float *log_sum_exp, *delta;  ///< [tokens, num_heads]; delta = <d_o, o>
  HeadRows<T> d_q, d_k, d_v;
};

/// Rows and keys of the tiles of a family of kernels.
struct AttentionTileSizes {
  std::int64_t forward_rows, backward_rows, backward_keys;
};

/// Tensor cores, bfloat16 (attention_tensor.cu).
constexpr std::int64_t kMaxTensorHeadDim = 128, kTensorPack = 8;  // elements of a 16-byte copy
AttentionTileSizes tensor_tile_sizes();
void tensor_attention(const CudaStream& stream, const AttentionForward<BFloat16>& args);
void tensor_attention_backward(const CudaStream& stream, const AttentionBackward<BFloat16>& args);

/// Any head_dim that fits, any storage (attention_plain.cu).
AttentionTileSizes plain_tile_sizes();
template <class T>
void plain_attention(const CudaStream& stream, const AttentionForward<T>& args);
template <class T>
void plain_attention_backward(const CudaStream& stream, const AttentionBackward<T>& args);

}  // namespace reprise::detail
