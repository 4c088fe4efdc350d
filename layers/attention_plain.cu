#include <cmath>

#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "layers/attention_tiles.cuh"

// Attention in float32 arithmetic for any storage and any head_dim whose tiles fit in shared memory: what float32 runs
// on, and bfloat16 where attention_tensor.cu does not fit. Tiles are 32 rows by 32 keys; operands, scores and sums
// stand in shared memory as float32, and a thread makes 2 x 4 scores or 4 x 4 sums from them in registers.

namespace reprise::detail {
namespace {

constexpr int kTile = 32, kThreads = 128, kWarps = kThreads / kWarpSize;
constexpr int kScoreStride = kTile + 4;  // of score rows: eight of them lie in different banks
constexpr int kLanesOfRow = kThreads / kTile;

/// Rows in shared memory: head_dim padded to whole packs, at an odd number of packs from each other.
struct RowLayout {
  int head_dim, size, stride;

  __host__ __device__ explicit RowLayout(int dim)
      : head_dim(dim), size((dim + 3) / 4 * 4), stride((size / 4 | 1) * 4) {}
  __host__ __device__ int tile_size() const { return kTile * stride; }
};

/// Rows [first, end), kTile at most, as float32; zeros for what is missing.
template <class RowAt>
__device__ void load_tile(const RowLayout& layout, float* tile, int first, int end, const RowAt& row_at) {
  for (int row = warp_index(); row < kTile; row += kWarps) {
    const auto* const source = row_at(min(first + row, end - 1));
    for (int col = lane_index(); col < layout.size; col += kWarpSize) {
      const bool is_valid = first + row < end && col < layout.head_dim;
      tile[row * layout.stride + col] = is_valid ? to_float(source[col]) : 0.0f;
    }
  }
}

/// Rows of a tile times `factor` to rows [first, end).
template <class RowAt>
__device__ void store_tile(const RowLayout& layout, const float* tile, float factor, int first, int end,
                           const RowAt& row_at) {
  for (int row = warp_index(); row < kTile && first + row < end; row += kWarps) {
    auto* const target = row_at(first + row);
    for (int col = lane_index(); col < layout.head_dim; col += kWarpSize) {
      target[col] = from_float<std::remove_reference_t<decltype(*target)>>(tile[row * layout.stride + col] * factor);
    }
  }
}

__device__ void clear_tile(const RowLayout& layout, float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < layout.tile_size(); i += kThreads) tile[i] = 0.0f;
}

/// scores [kTile, kTile] = a b^T.
__device__ void multiply_transposed(const RowLayout& layout, const float* a, const float* b, float* scores) {
  const int row = static_cast<int>(threadIdx.x) / 8 * 2, col = static_cast<int>(threadIdx.x) % 8;
  float sums[2][4] = {};
  for (int k = 0; k < layout.size; k += 4) {
    Pack<float, 4> left[2], right[4];
    for (int i = 0; i < 2; ++i) left[i] = load_pack<4>(a + (row + i) * layout.stride, k);
    for (int j = 0; j < 4; ++j) right[j] = load_pack<4>(b + (col + 8 * j) * layout.stride, k);
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        for (int l = 0; l < 4; ++l) sums[i][j] += left[i][l] * right[j][l];
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) scores[(row + i) * kScoreStride + col + 8 * j] = sums[i][j];
  }
}

/// sums = factors of their rows times sums + weights b; no factors: ones.
__device__ void multiply_add(const RowLayout& layout, const float* weights, const float* b, const float* factors,
                             float* sums) {
  constexpr int kRowGroups = 8;
  for (int unit = static_cast<int>(threadIdx.x); unit < kRowGroups * layout.size / 4; unit += kThreads) {
    const int row = unit % kRowGroups, col = unit / kRowGroups * 4;
    Pack<float, 4> total[4];
    for (int i = 0; i < 4; ++i) {
      total[i] = load_pack<4>(sums + (row + kRowGroups * i) * layout.stride, col);
      for (int l = 0; l < 4; ++l) total[i][l] *= factors == nullptr ? 1.0f : factors[row + kRowGroups * i];
    }
    for (int k = 0; k < kTile; k += 4) {
      Pack<float, 4> right[4];
      for (int j = 0; j < 4; ++j) right[j] = load_pack<4>(b + (k + j) * layout.stride, col);
      for (int i = 0; i < 4; ++i) {
        const auto left = load_pack<4>(weights + (row + kRowGroups * i) * kScoreStride, k);
        for (int j = 0; j < 4; ++j) {
          for (int l = 0; l < 4; ++l) total[i][l] += left[j] * right[j][l];
        }
      }
    }
    for (int i = 0; i < 4; ++i) store_pack(sums + (row + kRowGroups * i) * layout.stride, col, total[i]);
  }
}

/// Over the lanes that share a score row.
template <class Combine>
__device__ float over_row(float value, const Combine& combine) {
  for (int distance = 1; distance < kLanesOfRow; distance *= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) attention_kernel(AttentionForward<T> args) {
  const AttentionHeads heads = args.heads;
  const RowLayout layout(heads.head_dim);
  SharedMemory shared;
  float* const queries = shared.take<float>(layout.tile_size());
  float* const keys = shared.take<float>(layout.tile_size());
  float* const values = shared.take<float>(layout.tile_size());
  float* const sums = shared.take<float>(layout.tile_size());
  float* const scores = shared.take<float>(kTile * kScoreStride);
  float* const factors = shared.take<float>(kTile);
  const AttentionTile tile = args.tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int row_end = min(tile.begin + kTile, tile.rows), key_end = heads.visible(tile, row_end - 1);
  load_tile(layout, queries, tile.begin, row_end, [&](int row) { return heads.query_row(args.q, tile, kv_head, row); });
  clear_tile(layout, sums);

  const int my_row = static_cast<int>(threadIdx.x) / kLanesOfRow, my_lane = static_cast<int>(threadIdx.x) % kLanesOfRow;
  const int row = min(tile.begin + my_row, row_end - 1), visible = heads.visible(tile, row);
  const float scale = heads.scale * kLog2E;
  float largest = -INFINITY, sum = 0.0f;
  for (int key = 0; key < key_end; key += kTile) {
    __syncthreads();  // the last keys and values have been used
    load_tile(layout, keys, key, key_end, [&](int at) { return heads.key_row(args.k, tile, kv_head, at); });
    load_tile(layout, values, key, key_end, [&](int at) { return heads.key_row(args.v, tile, kv_head, at); });
    __syncthreads();
    multiply_transposed(layout, queries, keys, scores);
    __syncthreads();
    float* const my_scores = scores + my_row * kScoreStride;
    float new_largest = largest;
#pragma unroll
    for (int col = my_lane; col < kTile; col += kLanesOfRow) {
      if (key + col < visible) new_largest = fmaxf(new_largest, my_scores[col] * scale);
    }
    new_largest = over_row(new_largest, [](float a, float b) { return fmaxf(a, b); });
    const float shrink = exp2f(largest - new_largest);
    sum *= shrink;
#pragma unroll
    for (int col = my_lane; col < kTile; col += kLanesOfRow) {
      const float p = key + col < visible ? exp2f(my_scores[col] * scale - new_largest) : 0.0f;
      my_scores[col] = p;
      sum += p;
    }
    largest = new_largest;
    if (my_lane == 0) factors[my_row] = shrink;
    __syncthreads();
    multiply_add(layout, scores, values, factors, sums);
  }
  __syncthreads();
  sum = over_row(sum, [](float a, float b) { return a + b; });
  if (my_lane == 0) {
    factors[my_row] = 1.0f / sum;
    if (args.log_sum_exp != nullptr && tile.begin + my_row < row_end) {
      args.log_sum_exp[heads.scalar_index(tile, kv_head, row)] = largest + log2f(sum);
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < layout.tile_size(); at += kThreads) {
    sums[at] *= factors[at / layout.stride];
  }
  __syncthreads();
  store_tile(layout, sums, 1.0f, tile.begin, row_end,
             [&](int at) { return heads.query_row(args.output, tile, kv_head, at); });
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads) attention_d_query_kernel(AttentionBackward<T> args) {
  const AttentionHeads heads = args.heads;
  const RowLayout layout(heads.head_dim);
  SharedMemory shared;
  float* const queries = shared.take<float>(layout.tile_size());
  float* const d_outputs = shared.take<float>(layout.tile_size());
  float* const keys = shared.take<float>(layout.tile_size());
  float* const values = shared.take<float>(layout.tile_size());
  float* const sums = shared.take<float>(layout.tile_size());
  float* const scores = shared.take<float>(kTile * kScoreStride);
  float* const d_scores = shared.take<float>(kTile * kScoreStride);
  const AttentionTile tile = args.query_tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int row_end = min(tile.begin + kTile, tile.rows), key_end = heads.visible(tile, row_end - 1);
  load_tile(layout, queries, tile.begin, row_end, [&](int row) { return heads.query_row(args.q, tile, kv_head, row); });
  load_tile(layout, d_outputs, tile.begin, row_end,
            [&](int row) { return heads.query_row(args.d_output, tile, kv_head, row); });
  clear_tile(layout, sums);

  const int my_row = static_cast<int>(threadIdx.x) / kLanesOfRow, my_lane = static_cast<int>(threadIdx.x) % kLanesOfRow;
  const int row = min(tile.begin + my_row, row_end - 1), visible = heads.visible(tile, row);
  const std::int64_t index = heads.scalar_index(tile, kv_head, row);
  const float scale = heads.scale * kLog2E, normaliser = args.log_sum_exp[index], delta = args.delta[index];
  for (int key = 0; key < key_end; key += kTile) {
    __syncthreads();  // the last keys and values have been used
    load_tile(layout, keys, key, key_end, [&](int at) { return heads.key_row(args.k, tile, kv_head, at); });
    load_tile(layout, values, key, key_end, [&](int at) { return heads.key_row(args.v, tile, kv_head, at); });
    __syncthreads();
    multiply_transposed(layout, queries, keys, scores);
    multiply_transposed(layout, d_outputs, values, d_scores);
    __syncthreads();
#pragma unroll
    for (int col = my_lane; col < kTile; col += kLanesOfRow) {
      const int at = my_row * kScoreStride + col;
      const float p = exp2f(scores[at] * scale - normaliser);
      d_scores[at] = key + col < visible ? p * (d_scores[at] - delta) : 0.0f;
    }
    __syncthreads();
    multiply_add(layout, d_scores, keys, nullptr, sums);
  }
  __syncthreads();
  store_tile(layout, sums, heads.scale, tile.begin, row_end,
             [&](int at) { return heads.query_row(args.d_q, tile, kv_head, at); });
}

template <class T>
__global__ void __launch_bounds__(kThreads) attention_d_key_kernel(AttentionBackward<T> args) {
  const AttentionHeads heads = args.heads;
  const RowLayout layout(heads.head_dim);
  SharedMemory shared;
  float* const keys = shared.take<float>(layout.tile_size());
  float* const values = shared.take<float>(layout.tile_size());
  float* const queries = shared.take<float>(layout.tile_size());
  float* const d_outputs = shared.take<float>(layout.tile_size());
  float* const d_keys = shared.take<float>(layout.tile_size());
  float* const d_values = shared.take<float>(layout.tile_size());
  float* const scores = shared.take<float>(kTile * kScoreStride);
  float* const d_scores = shared.take<float>(kTile * kScoreStride);
  const AttentionTile tile = args.key_tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int key_end = min(tile.begin + kTile, tile.keys);
  load_tile(layout, keys, tile.begin, key_end, [&](int at) { return heads.key_row(args.k, tile, kv_head, at); });
  load_tile(layout, values, tile.begin, key_end, [&](int at) { return heads.key_row(args.v, tile, kv_head, at); });
  clear_tile(layout, d_keys);
  clear_tile(layout, d_values);

  // Scores are transposed here: rows of the block's score tile are keys.
  const int my_key = static_cast<int>(threadIdx.x) / kLanesOfRow, my_lane = static_cast<int>(threadIdx.x) % kLanesOfRow;
  const int seen_from = heads.first_row(tile, tile.begin + my_key);
  const float scale = heads.scale * kLog2E;
  for (int row = heads.first_row(tile, tile.begin); row < tile.rows; row += kTile) {
    __syncthreads();  // the last queries have been used
    load_tile(layout, queries, row, tile.rows, [&](int at) { return heads.query_row(args.q, tile, kv_head, at); });
    load_tile(layout, d_outputs, row, tile.rows,
              [&](int at) { return heads.query_row(args.d_output, tile, kv_head, at); });
    __syncthreads();
    multiply_transposed(layout, keys, queries, scores);
    multiply_transposed(layout, values, d_outputs, d_scores);
    __syncthreads();
#pragma unroll
    for (int col = my_lane; col < kTile; col += kLanesOfRow) {
      const int at = my_key * kScoreStride + col;
      const bool is_seen = row + col >= seen_from && row + col < tile.rows;
      const std::int64_t index = heads.scalar_index(tile, kv_head, min(row + col, tile.rows - 1));
      const float p = is_seen ? exp2f(scores[at] * scale - args.log_sum_exp[index]) : 0.0f;
      scores[at] = p;
      d_scores[at] = is_seen ? p * (d_scores[at] - args.delta[index]) : 0.0f;
    }
    __syncthreads();
    multiply_add(layout, scores, d_outputs, nullptr, d_values);
    multiply_add(layout, d_scores, queries, nullptr, d_keys);
  }
  __syncthreads();
  store_tile(layout, d_keys, heads.scale, tile.begin, key_end,
             [&](int at) { return heads.key_row(args.d_k, tile, kv_head, at); });
  store_tile(layout, d_values, 1.0f, tile.begin, key_end,
             [&](int at) { return heads.key_row(args.d_v, tile, kv_head, at); });
}

std::size_t plain_bytes(std::int64_t head_dim, int tiles, int score_tiles) {
  const RowLayout layout(static_cast<int>(head_dim));
  return static_cast<std::size_t>(tiles) * shared_bytes<float>(layout.tile_size()) +
         static_cast<std::size_t>(score_tiles) * shared_bytes<float>(kTile * kScoreStride);
}

}  // namespace

AttentionTileSizes plain_tile_sizes() {
  return {kTile, kTile, kTile};
}

template <class T>
void plain_attention(const CudaStream& stream, const AttentionForward<T>& args) {
  const std::size_t bytes = plain_bytes(args.heads.head_dim, 4, 1) + shared_bytes<float>(kTile);
  launch(stream, {"attention_plain", blocks_for(args.tiles.size * args.heads.num_kv_heads, 1), kThreads, bytes},
         attention_kernel<T>, args);
}

template <class T>
void plain_attention_backward(const CudaStream& stream, const AttentionBackward<T>& args) {
  const std::int64_t kv_heads = args.heads.num_kv_heads, dim = args.heads.head_dim;
  launch(stream,
         {"attention_plain_d_query", blocks_for(args.query_tiles.size * kv_heads, 1), kThreads, plain_bytes(dim, 5, 2)},
         attention_d_query_kernel<T>, args);
  launch(stream,
         {"attention_plain_d_key", blocks_for(args.key_tiles.size * kv_heads, 1), kThreads, plain_bytes(dim, 6, 2)},
         attention_d_key_kernel<T>, args);
}

#define REPRISE_INSTANTIATE(T)                                                  \
  template void plain_attention(const CudaStream&, const AttentionForward<T>&); \
  template void plain_attention_backward(const CudaStream&, const AttentionBackward<T>&);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise::detail
