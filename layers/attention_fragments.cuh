#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cuda/simt.cuh"

namespace reprise::detail {

// Products of tiles in bfloat16 by the warps of a block: the left side has 16 rows, or kSets times 16, for each warp,
// the right side is shared.

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kChunk = 8;  // elements in 16 bytes

/// Elements between rows in shared memory: an odd number of 16 bytes, so that the eight rows of load_matrices lie in
/// different banks.
template <int kDim>
constexpr int kStride = kDim + kChunk;

template <int kDim>
constexpr std::size_t tile_bytes(int rows) {
  return shared_bytes<BFloat16>(std::int64_t{rows} * kStride<kDim>);
}

/// Asks for rows [first, end), kRows at most; zeros for what is missing there and beyond head_dim. More copies in one
/// turn of the loop (kUnroll) take registers for their addresses.
template <int kDim, int kRows, int kUnroll = 1, class RowAt>
__device__ void start_tile(BFloat16* tile, int first, int end, int head_dim, const RowAt& row_at) {
  constexpr int kChunks = kDim / kChunk;
#pragma unroll kUnroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, col = i % kChunks * kChunk;
    copy_async<16>(tile + row * kStride<kDim> + col, row_at(min(first + row, end - 1)) + col,
                   first + row < end && col < head_dim);
  }
}

template <int kDim>
__device__ void load_left(unsigned (&a)[4], const BFloat16* rows, int k) {
  const int lane = lane_index();
  load_matrices<4, false>(a, rows + lane % 16 * kStride<kDim> + 16 * k + lane / 16 * 8);
}

/// d [16 kSets, kCols] = a b^T; a has 16 kSets rows, b kCols rows.
template <int kDim, int kSets, int kCols>
__device__ void multiply_transposed(float (&d)[kSets][kCols / 8][4], const BFloat16* a, const BFloat16* b) {
  const int lane = lane_index();
  const BFloat16* const b_row = b + (lane / 16 * 8 + lane % 8) * kStride<kDim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int n = 0; n < kCols / 8; ++n) {
      for (int i = 0; i < 4; ++i) d[m][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    unsigned left[kSets][4];
#pragma unroll
    for (int m = 0; m < kSets; ++m) load_left<kDim>(left[m], a + 16 * m * kStride<kDim>, k);
#pragma unroll
    for (int n = 0; n < kCols / 16; ++n) {
      unsigned right[4];
      load_matrices<4, false>(right, b_row + 16 * n * kStride<kDim> + 16 * k);
      const unsigned low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < kSets; ++m) {
        mma_m16n8k16(d[m][2 * n], left[m], low);
        mma_m16n8k16(d[m][2 * n + 1], left[m], high);
      }
    }
  }
}

/// d [16 kSets, kDim] += weights b; weights [16 kSets, kInner] are accumulators, b has kInner rows.
template <int kDim, int kSets, int kInner>
__device__ void multiply_add(float (&d)[kSets][kDim / 8][4], const float (&weights)[kSets][kInner / 8][4],
                             const BFloat16* b) {
  const int lane = lane_index();
  const BFloat16* const b_row = b + lane % 16 * kStride<kDim> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kInner / 16; ++k) {
    unsigned left[kSets][4];
#pragma unroll
    for (int m = 0; m < kSets; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = weights[m][2 * k + i / 2] + i % 2 * 2;
        left[m][i] = pack_bfloat16(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      unsigned right[4];
      load_matrices<4, true>(right, b_row + 16 * k * kStride<kDim> + 16 * n);
      const unsigned low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < kSets; ++m) {
        mma_m16n8k16(d[m][2 * n], left[m], low);
        mma_m16n8k16(d[m][2 * n + 1], left[m], high);
      }
    }
  }
}

/// Of accumulators: the row of element [m][n][2 half + i] is 16 m + 8 half + lane / 4, the column 8 n + 2 (lane % 4) +
/// i.
__device__ inline int accumulator_row(int m, int half) {
  return 16 * m + 8 * half + lane_index() / 4;
}
__device__ inline int accumulator_col(int n) {
  return 8 * n + 2 * (lane_index() % 4);
}

/// Brings accumulators, times a factor of their row, to memory by way of the warp's own part of a tile, whose former
/// content no other warp reads. Rows from `rows` on and columns from head_dim on are dropped.
template <int kDim, int kSets, class RowAt>
__device__ void store_rows(const float (&values)[kSets][kDim / 8][4], const float (&factors)[kSets][2], BFloat16* tile,
                           int rows, int head_dim, const RowAt& row_at) {
  constexpr int kChunks = kDim / kChunk;
#pragma unroll
  for (int m = 0; m < kSets; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      BFloat16* const row = tile + accumulator_row(m, half) * kStride<kDim>;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float* const pair = values[m][n] + 2 * half;
        *reinterpret_cast<unsigned*>(row + accumulator_col(n)) =
            pack_bfloat16(pair[0] * factors[m][half], pair[1] * factors[m][half]);
      }
    }
  }
  __syncwarp();
  for (int i = lane_index(); i < 16 * kSets * kChunks; i += kWarpSize) {
    const int row = i / kChunks, col = i % kChunks * kChunk;
    if (row < rows && col < head_dim) store_pack(row_at(row), col, load_pack<kChunk>(tile + row * kStride<kDim>, col));
  }
}

}  // namespace reprise::detail
