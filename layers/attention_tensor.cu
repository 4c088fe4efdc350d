#include <cmath>
#include <type_traits>

#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "layers/attention_fragments.cuh"
#include "layers/attention_tiles.cuh"

// Attention in bfloat16 on tensor cores. Three kernels of one shape: four warps, each with 16 or 32 rows of its own,
// walk over tiles of the other side that stand in shared memory. Scores are made in the accumulators of mma_m16n8k16,
// whose layout is, rounded and packed, that of the left operand of the next product: they never leave registers.
//   forward    S = Q K^T, softmax,                    O += P V            rows are (query, head) rows
//   d_q        S = Q K^T, dP = dO V^T,                dQ += dS K          rows are (query, head) rows
//   d_k, d_v   S^T = K Q^T, dP^T = V dO^T,            dV += P^T dO, dK += dS^T Q      rows are keys
// A sum is made by one warp in the order of the tiles, so its bits depend on the shape alone. docs/kernels.md has the
// work, the bytes and the registers of each.

namespace reprise::detail {
namespace {

// ---- forward -------------------------------------------------------------------------------------------------------

/// What a warp has of a softmax over rows: the largest score so far, this lane's part of the sum of exponentials.
template <int kSets>
struct SoftmaxRows {
  float largest[kSets][2], sum[kSets][2];
};

/// visible(row) keys of a tile are seen by a row, the others get a score of minus infinity.
template <int kSets, int kKeys, class Visible>
__device__ void hide_keys(float (&scores)[kSets][kKeys / 8][4], const Visible& visible) {
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int end = visible(accumulator_row(m, half));
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (accumulator_col(n) + i >= end) scores[m][n][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

/// Scores become exponentials; earlier sums shrink to the new maximum.
template <int kDim, int kSets, int kKeys>
__device__ void softmax_tile(float (&scores)[kSets][kKeys / 8][4], float (&sums)[kSets][kDim / 8][4],
                             SoftmaxRows<kSets>& rows, float scale) {
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = rows.largest[m][half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) largest = fmaxf(largest, scores[m][n][2 * half + i]);
      }
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      const float top = largest * scale, shrink = exp2_approximate(rows.largest[m][half] * scale - top);
      float sum = rows.sum[m][half] * shrink;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[m][n][2 * half + i];
          score = exp2_approximate(score * scale - top);
          sum += score;
        }
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        sums[m][n][2 * half] *= shrink;
        sums[m][n][2 * half + 1] *= shrink;
      }
      rows.largest[m][half] = largest;
      rows.sum[m][half] = sum;
    }
  }
}

template <int kDim, int kSets, int kKeys>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(AttentionForward<BFloat16> args) {
  constexpr int kWarpRows = 16 * kSets, kRows = kWarps * kWarpRows, kCopiesAtOnce = 2;
  SharedMemory shared;
  BFloat16* const queries = shared.take<BFloat16>(kRows * kStride<kDim>);
  BFloat16* const keys = shared.take<BFloat16>(kKeys * kStride<kDim>);
  BFloat16* const values = shared.take<BFloat16>(kKeys * kStride<kDim>);
  const AttentionHeads heads = args.heads;
  const AttentionTile tile = args.tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int row_end = min(tile.begin + kRows, tile.rows), key_end = heads.visible(tile, row_end - 1);
  const auto key_at = [&](int key) { return heads.key_row(args.k, tile, kv_head, key); };
  const auto value_at = [&](int key) { return heads.key_row(args.v, tile, kv_head, key); };

  start_tile<kDim, kRows>(queries, tile.begin, row_end, heads.head_dim,
                          [&](int row) { return heads.query_row(args.q, tile, kv_head, row); });
  start_tile<kDim, kKeys, kCopiesAtOnce>(keys, 0, key_end, heads.head_dim, key_at);
  commit_copies();

  const int first_row = tile.begin + warp_index() * kWarpRows;
  const bool is_busy = first_row < row_end;
  const int first_visible = heads.visible(tile, min(first_row, row_end - 1));
  const float scale = heads.scale * kLog2E;
  float sums[kSets][kDim / 8][4] = {};
  SoftmaxRows<kSets> rows;
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.largest[m][half] = -INFINITY;
      rows.sum[m][half] = 0.0f;
    }
  }

  for (int key = 0; key < key_end; key += kKeys) {
    float scores[kSets][kKeys / 8][4];
    wait_for_copies<0>();
    __syncthreads();  // the keys are there, and the last values have been used
    start_tile<kDim, kKeys, kCopiesAtOnce>(values, key, key_end, heads.head_dim, value_at);
    commit_copies();
    if (is_busy) {
      multiply_transposed<kDim, kSets, kKeys>(scores, queries + warp_index() * kWarpRows * kStride<kDim>, keys);
    }
    wait_for_copies<0>();
    __syncthreads();  // the values are there, and the keys have been used
    if (key + kKeys < key_end)
      start_tile<kDim, kKeys, kCopiesAtOnce>(keys, key + kKeys, key_end, heads.head_dim, key_at);
    commit_copies();
    if (is_busy) {
      if (key + kKeys > first_visible) {
        hide_keys<kSets, kKeys>(scores,
                                [&](int row) { return heads.visible(tile, min(first_row + row, row_end - 1)) - key; });
      }
      softmax_tile<kDim, kSets, kKeys>(scores, sums, rows, scale);
      multiply_add<kDim, kSets, kKeys>(sums, scores, values);
    }
  }

  float factors[kSets][2];
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.sum[m][half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      factors[m][half] = 1.0f / sum;
      const int row = first_row + accumulator_row(m, half);
      if (args.log_sum_exp != nullptr && row < row_end && lane_index() % 4 == 0) {
        args.log_sum_exp[heads.scalar_index(tile, kv_head, row)] = rows.largest[m][half] * scale + log2f(sum);
      }
    }
  }
  store_rows<kDim, kSets>(sums, factors, queries + warp_index() * kWarpRows * kStride<kDim>, row_end - first_row,
                          heads.head_dim,
                          [&](int row) { return heads.query_row(args.output, tile, kv_head, first_row + row); });
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <int kDim, int kSets, int kKeys>
__global__ void __launch_bounds__(kThreads, 2) attention_d_query_kernel(AttentionBackward<BFloat16> args) {
  constexpr int kWarpRows = 16 * kSets, kRows = kWarps * kWarpRows, kTile = kKeys * kStride<kDim>;
  SharedMemory shared;
  BFloat16* const queries = shared.take<BFloat16>(kRows * kStride<kDim>);
  BFloat16* const d_outputs = shared.take<BFloat16>(kRows * kStride<kDim>);
  BFloat16* const keys = shared.take<BFloat16>(2 * kTile);
  BFloat16* const values = shared.take<BFloat16>(2 * kTile);
  const AttentionHeads heads = args.heads;
  const AttentionTile tile = args.query_tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int row_end = min(tile.begin + kRows, tile.rows), key_end = heads.visible(tile, row_end - 1);
  const auto start_keys = [&](int key, int stage) {
    start_tile<kDim, kKeys>(keys + stage * kTile, key, key_end, heads.head_dim,
                            [&](int at) { return heads.key_row(args.k, tile, kv_head, at); });
    start_tile<kDim, kKeys>(values + stage * kTile, key, key_end, heads.head_dim,
                            [&](int at) { return heads.key_row(args.v, tile, kv_head, at); });
  };
  start_tile<kDim, kRows>(queries, tile.begin, row_end, heads.head_dim,
                          [&](int row) { return heads.query_row(args.q, tile, kv_head, row); });
  start_tile<kDim, kRows>(d_outputs, tile.begin, row_end, heads.head_dim,
                          [&](int row) { return heads.query_row(args.d_output, tile, kv_head, row); });
  start_keys(0, 0);
  commit_copies();

  const int first_row = tile.begin + warp_index() * kWarpRows;
  const bool is_busy = first_row < row_end;
  const int first_visible = heads.visible(tile, min(first_row, row_end - 1));
  const float scale = heads.scale * kLog2E;
  BFloat16* const my_queries = queries + warp_index() * kWarpRows * kStride<kDim>;
  float sums[kSets][kDim / 8][4] = {}, normalisers[kSets][2], deltas[kSets][2], factors[kSets][2];
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(first_row + accumulator_row(m, half), row_end - 1);
      const std::int64_t index = heads.scalar_index(tile, kv_head, row);
      normalisers[m][half] = args.log_sum_exp[index];
      deltas[m][half] = args.delta[index];
      factors[m][half] = heads.scale;
    }
  }

  for (int key = 0, stage = 0; key < key_end; key += kKeys, stage ^= 1) {
    if (key + kKeys < key_end) start_keys(key + kKeys, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    if (is_busy) {
      float scores[kSets][kKeys / 8][4], d_scores[kSets][kKeys / 8][4];
      multiply_transposed<kDim, kSets, kKeys>(scores, my_queries, keys + stage * kTile);
      if (key + kKeys > first_visible) {
        hide_keys<kSets, kKeys>(scores,
                                [&](int row) { return heads.visible(tile, min(first_row + row, row_end - 1)) - key; });
      }
      multiply_transposed<kDim, kSets, kKeys>(d_scores, d_outputs + warp_index() * kWarpRows * kStride<kDim>,
                                              values + stage * kTile);
#pragma unroll
      for (int m = 0; m < kSets; ++m) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float p = exp2_approximate(scores[m][n][i] * scale - normalisers[m][i / 2]);
            d_scores[m][n][i] = p * (d_scores[m][n][i] - deltas[m][i / 2]);
          }
        }
      }
      multiply_add<kDim, kSets, kKeys>(sums, d_scores, keys + stage * kTile);
    }
    __syncthreads();  // the next but one copy comes to this stage
  }
  store_rows<kDim, kSets>(sums, factors, my_queries, row_end - first_row, heads.head_dim,
                          [&](int row) { return heads.query_row(args.d_q, tile, kv_head, first_row + row); });
}

template <int kDim, int kRows>
__global__ void __launch_bounds__(kThreads, 2) attention_d_key_kernel(AttentionBackward<BFloat16> args) {
  constexpr int kWarpKeys = 16, kKeys = kWarps * kWarpKeys, kTile = kRows * kStride<kDim>;
  SharedMemory shared;
  BFloat16* const keys = shared.take<BFloat16>(kKeys * kStride<kDim>);
  BFloat16* const values = shared.take<BFloat16>(kKeys * kStride<kDim>);
  BFloat16* const queries = shared.take<BFloat16>(2 * kTile);
  BFloat16* const d_outputs = shared.take<BFloat16>(2 * kTile);
  float* const normalisers = shared.take<float>(2 * kRows);
  float* const deltas = shared.take<float>(2 * kRows);
  const AttentionHeads heads = args.heads;
  const AttentionTile tile = args.key_tiles[blockIdx.x / heads.num_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % heads.num_kv_heads;
  const int key_end = min(tile.begin + kKeys, tile.keys), row_begin = heads.first_row(tile, tile.begin);
  const auto start_rows = [&](int first, int stage) {
    start_tile<kDim, kRows>(queries + stage * kTile, first, tile.rows, heads.head_dim,
                            [&](int row) { return heads.query_row(args.q, tile, kv_head, row); });
    start_tile<kDim, kRows>(d_outputs + stage * kTile, first, tile.rows, heads.head_dim,
                            [&](int row) { return heads.query_row(args.d_output, tile, kv_head, row); });
    if (threadIdx.x < kRows) {
      const int at = static_cast<int>(threadIdx.x), row = min(first + at, tile.rows - 1);
      const std::int64_t index = heads.scalar_index(tile, kv_head, row);
      copy_async<4>(normalisers + stage * kRows + at, args.log_sum_exp + index, true);
      copy_async<4>(deltas + stage * kRows + at, args.delta + index, true);
    }
  };
  start_tile<kDim, kKeys>(keys, tile.begin, key_end, heads.head_dim,
                          [&](int key) { return heads.key_row(args.k, tile, kv_head, key); });
  start_tile<kDim, kKeys>(values, tile.begin, key_end, heads.head_dim,
                          [&](int key) { return heads.key_row(args.v, tile, kv_head, key); });
  if (row_begin < tile.rows) start_rows(row_begin, 0);
  commit_copies();

  const int first_key = tile.begin + warp_index() * kWarpKeys, last_key = min(first_key + kWarpKeys, key_end) - 1;
  const bool is_busy = first_key < key_end;
  const float scale = heads.scale * kLog2E;
  BFloat16* const my_keys = keys + warp_index() * kWarpKeys * kStride<kDim>;
  BFloat16* const my_values = values + warp_index() * kWarpKeys * kStride<kDim>;
  float d_keys[1][kDim / 8][4] = {}, d_values[1][kDim / 8][4] = {};
  int first_seen_by[2];
  for (int half = 0; half < 2; ++half) {
    first_seen_by[half] = heads.first_row(tile, first_key + accumulator_row(0, half));
  }
  const int some_see_from = heads.first_row(tile, first_key), all_see_from = heads.first_row(tile, last_key);

  for (int row = row_begin, stage = 0; row < tile.rows; row += kRows, stage ^= 1) {
    if (row + kRows < tile.rows) start_rows(row + kRows, stage ^ 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    if (is_busy && row + kRows > some_see_from) {
      const bool all_visible = row >= all_see_from && row + kRows <= tile.rows;
      float p[1][kRows / 8][4], d_scores[1][kRows / 8][4];
      multiply_transposed<kDim, 1, kRows>(p, my_keys, queries + stage * kTile);
      multiply_transposed<kDim, 1, kRows>(d_scores, my_values, d_outputs + stage * kTile);
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n) {
        const int col = accumulator_col(n);
        const auto normaliser = load_pack<2>(normalisers + stage * kRows, col);
        const auto delta = load_pack<2>(deltas + stage * kRows, col);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = row + col + i % 2;
          const bool is_seen = all_visible || (at >= first_seen_by[i / 2] && at < tile.rows);
          p[0][n][i] = is_seen ? exp2_approximate(p[0][n][i] * scale - normaliser[i % 2]) : 0.0f;
          d_scores[0][n][i] = is_seen ? p[0][n][i] * (d_scores[0][n][i] - delta[i % 2]) : 0.0f;
        }
      }
      multiply_add<kDim, 1, kRows>(d_values, p, d_outputs + stage * kTile);
      multiply_add<kDim, 1, kRows>(d_keys, d_scores, queries + stage * kTile);
    }
    __syncthreads();  // the next but one copy comes to this stage
  }
  const float key_factors[1][2] = {{heads.scale, heads.scale}}, value_factors[1][2] = {{1.0f, 1.0f}};
  store_rows<kDim, 1>(d_keys, key_factors, my_keys, key_end - first_key, heads.head_dim,
                      [&](int key) { return heads.key_row(args.d_k, tile, kv_head, first_key + key); });
  store_rows<kDim, 1>(d_values, value_factors, my_values, key_end - first_key, heads.head_dim,
                      [&](int key) { return heads.key_row(args.d_v, tile, kv_head, first_key + key); });
}

// ---- launches ------------------------------------------------------------------------------------------------------

// Two sets of 16 rows share what a warp reads of the other side. Keys of a forward tile: as many as leave no register
// to spill.
constexpr int kRowSets = 2, kQueryRows = kWarps * 16 * kRowSets;
template <int kDim>
constexpr int kForwardKeys = kDim > 64 ? 32 : 64;
constexpr int kBackwardKeys = 32;                         // of the kernel of d_q
constexpr int kKeyTile = kWarps * 16, kKeyTileRows = 32;  // of the kernel of d_k and d_v

template <int kDim>
void forward(const CudaStream& stream, const AttentionForward<BFloat16>& args) {
  const std::size_t bytes = tile_bytes<kDim>(kQueryRows) + 2 * tile_bytes<kDim>(kForwardKeys<kDim>);
  launch(stream, {"attention", blocks_for(args.tiles.size * args.heads.num_kv_heads, 1), kThreads, bytes},
         attention_kernel<kDim, kRowSets, kForwardKeys<kDim>>, args);
}

template <int kDim>
void backward(const CudaStream& stream, const AttentionBackward<BFloat16>& args) {
  const std::int64_t kv_heads = args.heads.num_kv_heads;
  const std::size_t bytes = 2 * tile_bytes<kDim>(kQueryRows) + 2 * tile_bytes<kDim>(2 * kBackwardKeys);
  launch(stream, {"attention_d_query", blocks_for(args.query_tiles.size * kv_heads, 1), kThreads, bytes},
         attention_d_query_kernel<kDim, kRowSets, kBackwardKeys>, args);
  const std::size_t key_bytes = 2 * tile_bytes<kDim>(kKeyTile) + 2 * tile_bytes<kDim>(2 * kKeyTileRows) +
                                2 * shared_bytes<float>(2 * kKeyTileRows);
  launch(stream, {"attention_d_key", blocks_for(args.key_tiles.size * kv_heads, 1), kThreads, key_bytes},
         attention_d_key_kernel<kDim, kKeyTileRows>, args);
}

/// call(std::integral_constant of the smallest kernel that holds head_dim).
template <class Call>
void with_dim(std::int64_t head_dim, const Call& call) {
  if (head_dim <= 32) return call(std::integral_constant<int, 32>());
  if (head_dim <= 64) return call(std::integral_constant<int, 64>());
  if (head_dim <= 96) return call(std::integral_constant<int, 96>());
  REPRISE_CUDA_CHECK(head_dim <= kMaxTensorHeadDim, "head_dim ", head_dim, " has no tensor-core kernel");
  call(std::integral_constant<int, 128>());
}

}  // namespace

AttentionTileSizes tensor_tile_sizes() {
  return {kQueryRows, kQueryRows, kKeyTile};
}

void tensor_attention(const CudaStream& stream, const AttentionForward<BFloat16>& args) {
  with_dim(args.heads.head_dim, [&](auto dim) { forward<decltype(dim)::value>(stream, args); });
}

void tensor_attention_backward(const CudaStream& stream, const AttentionBackward<BFloat16>& args) {
  with_dim(args.heads.head_dim, [&](auto dim) { backward<decltype(dim)::value>(stream, args); });
}

}  // namespace reprise::detail
