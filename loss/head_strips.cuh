#pragma once

#include "loss/head_device.cuh"

namespace reprise {

// Rows of W for tensor cores: a strip is 16 rows by 64 columns in shared memory, 2 KB with swizzled words, read by one
// warp as the operand a of mma_m16n8k16, rows or columns of W first.

constexpr int kStripRows = 16;
constexpr int kStripColumns = 64;
constexpr int kStripWords = kStripColumns / kPackSize<BFloat16>;
constexpr int kStripElements = kStripRows * kStripColumns;

/// The rows of a strip that a lane copies: lane / 8 + 4 i, one word of each.
constexpr int kRowsOfALane = kStripRows * kStripWords / kWarpSize;
constexpr int kRowStep = kStripRows / kRowsOfALane;

/// Rows of W by number, -1: none.
struct StripRows {
  int index[kRowsOfALane];

  /// Rows of the ids [first, first + 16) of `num_ids`.
  __device__ void look_up(const std::int32_t* ids, int num_ids, int first, std::int64_t first_id) {
#pragma unroll
    for (int i = 0; i < kRowsOfALane; ++i) {
      const int k = first + lane_index() / kStripWords + i * kRowStep;
      index[i] = k < num_ids ? static_cast<int>(ids[k] - first_id) : -1;
    }
  }
};

/// Asks for the columns [column, column + 64) of the rows; zeros where there is no row or column. The caller commits.
/// Called by a whole warp.
__device__ inline void ask_for_strip(BFloat16* strip, MatrixView<const BFloat16> weight, const StripRows& rows,
                                     int column) {
  const int row = lane_index() / kStripWords, word = lane_index() % kStripWords;
  const int begin = column + word * kPackSize<BFloat16>;
  const int place = swizzled_word<kStripWords>(row, word);
#pragma unroll
  for (int i = 0; i < kRowsOfALane; ++i) {
    const bool is_valid = rows.index[i] >= 0 && begin < weight.cols;
    const int other_place = (place ^ i % 2 * kRowStep) + i * kRowStep * kStripWords;  // one bit of the swizzle, or none
    copy_async<16>(strip + other_place * kPackSize<BFloat16>,
                   is_valid ? weight.data + rows.index[i] * weight.cols + begin : weight.data, is_valid);
  }
}

/// A(m, k) = strip(row m, column 16 step + k). (What depends on the lane is the same for all steps, to spare
/// registers.)
__device__ inline void load_rows_first(unsigned (&a)[4], const BFloat16* strip, int step) {
  const int word = swizzled_word<kStripWords>(lane_index() % kStripRows, lane_index() / kStripRows) ^ 2 * step;
  load_matrices<4, false>(a, strip + word * kPackSize<BFloat16>);
}
/// A(m, k) = strip(row k, column 16 step + m)
__device__ inline void load_columns_first(unsigned (&a)[4], const BFloat16* strip, int step) {
  const int row = lane_index() % 8 + lane_index() / 16 * 8;
  const int word = swizzled_word<kStripWords>(row, lane_index() / 8 % 2) ^ 2 * step;
  load_matrices<4, true>(a, strip + word * kPackSize<BFloat16>);
}

}  // namespace reprise
