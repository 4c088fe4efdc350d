// The restricted head for tiles of many tokens, or of a D beyond tile_head's, in bfloat16: two products with gathered
// rows, each of which passes over the listed rows of W once for up to 64 tokens.
//
//   wide_logits   128 rows of W as M, the tokens as N, over all of D: the logits
//   wide_factors  per token maximum and sum, and exp(z - max) dz/dx rounded to bfloat16
//   wide_sums     512 columns of W as M, the tokens as N, over all rows: the gradient
//
// Rows come in strips (head_strips.cuh) that a warp brings for itself; what all warps share, h or the factors, comes
// once for the block. A tile of 64 with |U| = 1,900 and D = 4096 moves 2 x 15.6 MB of W and 7.8 MB of h from L2, and
// makes 2 GFLOP: T = 4096 takes 2.5 GB, 0.46 ms at 5.5 TB/s; 128 GFLOP, 0.21 ms at 620 TFLOP/s of mma.sync.
#include "core/cuda/launch.hpp"
#include "loss/head_strips.cuh"

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStages = 4;
constexpr int kSteps = kStripColumns / 16;

/// Operand b of 2 kPairs tiles of 8 tokens: two tiles at a time, or the only one.
template <int kTokens>
constexpr int kTokenTiles = kTokens / 8;

// ---- logits

template <int kTokens>
constexpr std::size_t kLogitsSharedBytes =
    shared_bytes<BFloat16>(kStages* kWarps* kStripElements) + shared_bytes<BFloat16>(kStages* kTokens* kStripColumns);

/// Asks for 64 columns of the piece's tokens as [kTokens, 64], swizzled; zeros where there is no token or column.
template <int kTokens>
__device__ inline void ask_for_hidden(BFloat16* to, MatrixView<const BFloat16> hidden, const HeadPiece& piece,
                                      int column) {
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kStripWords; i += kThreads) {
    const int token = i / kStripWords, word = i % kStripWords, begin = column + word * kPackSize<BFloat16>;
    const bool is_valid = token < piece.tokens && begin < hidden.cols;
    copy_async<16>(to + swizzled_word<kStripWords>(token, word) * kPackSize<BFloat16>,
                   is_valid ? hidden.row(piece.token_begin + token).data + begin : hidden.data, is_valid);
  }
}

/// sums[n] += rows of the strip times tokens 8 n + (0..7), over 64 columns.
template <int kTokens>
__device__ inline void multiply_rows(float (&sums)[kTokenTiles<kTokens>][4], const BFloat16* strip,
                                     const BFloat16* hidden) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    unsigned a[4];
    load_rows_first(a, strip, step);
#pragma unroll
    for (int n = 0; n < kTokenTiles<kTokens>; ++n) {
      unsigned b[2];  // lanes 0 to 15 name the rows of both matrices
      const int token = 8 * n + lane_index() % 8, word = 2 * step + lane_index() / 8 % 2;
      load_matrices<2, false>(b, hidden + swizzled_word<kStripWords>(token, word) * kPackSize<BFloat16>);
      mma_m16n8k16(sums[n], a, b);
    }
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) wide_logits_kernel(HeadArguments<BFloat16> head, HeadPieces pieces) {
  const HeadPiece piece = pieces[blockIdx.x];
  const auto depth = static_cast<int>(head.weight.cols);
  SharedMemory shared;
  BFloat16* const strips = shared.take<BFloat16>(kStages * kWarps * kStripElements) + warp_index() * kStripElements;
  BFloat16* const hidden = shared.take<BFloat16>(kStages * kTokens * kStripColumns);
  StripRows rows;
  rows.look_up(head.ids + piece.id_begin, piece.num_ids, warp_index() * kStripRows, head.first_id);
  const auto ask = [&](int column) {
    const int stage = column / kStripColumns % kStages;
    if (column < depth) {
      ask_for_strip(strips + stage * kWarps * kStripElements, head.weight, rows, column);
      ask_for_hidden<kTokens>(hidden + stage * kTokens * kStripColumns, head.hidden, piece, column);
    }
    commit_copies();
  };
  for (int i = 0; i + 1 < kStages; ++i) ask(i * kStripColumns);

  float sums[kTokenTiles<kTokens>][4] = {};
  for (int column = 0; column < depth; column += kStripColumns) {
    const int stage = column / kStripColumns % kStages;
    wait_for_copies<kStages - 2>();
    __syncthreads();  // what others brought is here, and all have left the stage that is asked for next
    ask(column + (kStages - 1) * kStripColumns);
    multiply_rows<kTokens>(sums, strips + stage * kWarps * kStripElements, hidden + stage * kTokens * kStripColumns);
  }
  wait_for_copies<0>();

#pragma unroll
  for (int n = 0; n < kTokenTiles<kTokens>; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = warp_index() * kStripRows + lane_index() / 4 + j / 2 * 8;
      const int token = 8 * n + lane_index() % 4 * 2 + j % 2;
      if (k < piece.num_ids && token < piece.tokens) {
        head.logits[piece.logits + std::int64_t{k} * piece.logits_stride + token] = logit_of(head.rule, sums[n][j]);
      }
    }
  }
}

// ---- factors

/// One block per unit; thread i: token i % kTokens and every (threads / kTokens)-th row. factors: [rows, kTokens] from
/// row unit.part on, zero behind the unit's tokens.
template <int kTokens>
__global__ void __launch_bounds__(kThreads)
    wide_factors_kernel(HeadArguments<BFloat16> head, HeadPieces units, VectorView<BFloat16> factors) {
  constexpr int kGroups = kThreads / kTokens;
  const HeadPiece unit = units[blockIdx.x];
  SharedMemory shared;
  float* const of_groups = shared.take<float>(kThreads);
  const int token = static_cast<int>(threadIdx.x) % kTokens, group = static_cast<int>(threadIdx.x) / kTokens;
  const bool is_token = token < unit.tokens;
  const float* const logits = head.logits + unit.logits + token;
  float max = -INFINITY;
  for (int k = group; is_token && k < unit.num_ids; k += kGroups) {
    max = fmaxf(max, logits[std::int64_t{k} * unit.logits_stride]);
  }
  of_groups[threadIdx.x] = max;
  __syncthreads();
  for (int i = 0; i < kGroups; ++i) max = fmaxf(max, of_groups[i * kTokens + token]);
  __syncthreads();
  float sum = 0.0f;
  for (int k = group; k < unit.num_ids; k += kGroups) {
    float factor = 0.0f;
    if (is_token) {
      const float logit = logits[std::int64_t{k} * unit.logits_stride], power = expf(logit - max);
      sum += power;
      factor = power * slope_of(head.rule, logit);
    }
    factors[(std::int64_t{unit.part} + k) * kTokens + token] = from_float<BFloat16>(factor);
  }
  of_groups[threadIdx.x] = sum;
  __syncthreads();
  if (group != 0 || !is_token) return;
  sum = 0.0f;
  for (int i = 0; i < kGroups; ++i) sum += of_groups[i * kTokens + token];
  head.results.statistics[unit.token_begin + token] = {max, sum, 0.0f};
}

// ---- gradient

constexpr int kBlockColumns = kWarps * kStripColumns;
constexpr int kStageStrips = 2;
constexpr int kStageRows = kStageStrips * kStripRows;

template <int kTokens>
constexpr std::size_t kSumsSharedBytes = shared_bytes<BFloat16>(kStages* kWarps* kStageStrips* kStripElements) +
                                         shared_bytes<BFloat16>(kStages* kStageRows* kTokens);

/// Asks for the factors of 32 rows from `row` on as [32, kTokens], swizzled; zeros behind the unit's rows.
template <int kTokens>
__device__ inline void ask_for_factors(BFloat16* to, const BFloat16* factors, int num_rows) {
  constexpr int kWords = kTokens / kPackSize<BFloat16>;
  for (int i = static_cast<int>(threadIdx.x); i < kStageRows * kWords; i += kThreads) {
    const int row = i / kWords, word = i % kWords;
    const bool is_valid = row < num_rows;
    copy_async<16>(to + swizzled_word<kWords>(row, word) * kPackSize<BFloat16>,
                   is_valid ? factors + (row * kWords + word) * kPackSize<BFloat16> : factors, is_valid);
  }
}

/// sums[step][n] += columns 16 step + (0..15) of the strip's rows times their factors for tokens 8 n + (0..7).
template <int kTokens>
__device__ inline void multiply_columns(float (&sums)[kSteps][kTokenTiles<kTokens>][4], const BFloat16* strip,
                                        const BFloat16* factors, int first_row) {
  constexpr int kWords = kTokens / kPackSize<BFloat16>;
  unsigned b[kTokenTiles<kTokens>][2];
#pragma unroll
  for (int n = 0; n < kTokenTiles<kTokens>; ++n) {
    load_matrices<2, true>(
        b[n], factors + swizzled_word<kWords>(first_row + lane_index() % kStripRows, n) * kPackSize<BFloat16>);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    unsigned a[4];
    load_columns_first(a, strip, step);
#pragma unroll
    for (int n = 0; n < kTokenTiles<kTokens>; ++n) mma_m16n8k16(sums[step][n], a, b[n]);
  }
}

/// Block x: unit; y: 512 columns.
template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    wide_sums_kernel(HeadArguments<BFloat16> head, HeadPieces units, VectorView<const BFloat16> all_factors) {
  const HeadPiece unit = units[blockIdx.x];
  const int column = static_cast<int>(blockIdx.y) * kBlockColumns + warp_index() * kStripColumns;
  const BFloat16* const unit_factors = all_factors.data + std::int64_t{unit.part} * kTokens;
  SharedMemory shared;
  BFloat16* const strips = shared.take<BFloat16>(kStages * kWarps * kStageStrips * kStripElements) +
                           warp_index() * kStageStrips * kStripElements;
  BFloat16* const factors = shared.take<BFloat16>(kStages * kStageRows * kTokens);
  const auto ask = [&](int first) {
    const int stage = first / kStageRows % kStages;
    if (first < unit.num_ids) {
      for (int i = 0; i < kStageStrips; ++i) {
        StripRows rows;
        rows.look_up(head.ids + unit.id_begin, unit.num_ids, first + i * kStripRows, head.first_id);
        ask_for_strip(strips + (stage * kWarps * kStageStrips + i) * kStripElements, head.weight, rows, column);
      }
      ask_for_factors<kTokens>(factors + stage * kStageRows * kTokens, unit_factors + std::int64_t{first} * kTokens,
                               unit.num_ids - first);
    }
    commit_copies();
  };
  for (int i = 0; i + 1 < kStages; ++i) ask(i * kStageRows);

  float sums[kSteps][kTokenTiles<kTokens>][4] = {};
  for (int first = 0; first < unit.num_ids; first += kStageRows) {
    const int stage = first / kStageRows % kStages;
    wait_for_copies<kStages - 2>();
    __syncthreads();  // as in wide_logits_kernel
    ask(first + (kStages - 1) * kStageRows);
#pragma unroll
    for (int i = 0; i < kStageStrips; ++i) {
      multiply_columns<kTokens>(sums, strips + (stage * kWarps * kStageStrips + i) * kStripElements,
                                factors + stage * kStageRows * kTokens, i * kStripRows);
    }
  }
  wait_for_copies<0>();

  const MatrixView<float> accumulator = head.results.accumulator;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kTokenTiles<kTokens>; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = column + step * 16 + lane_index() / 4 + j / 2 * 8;
        const int token = 8 * n + lane_index() % 4 * 2 + j % 2;
        if (token < unit.tokens && at < accumulator.cols) accumulator(unit.token_begin + token, at) = sums[step][n][j];
      }
    }
  }
}

template <int kTokens>
void launch_wide(const CudaStream& stream, const HeadArguments<BFloat16>& head, HeadPieces units, HeadPieces pieces,
                 VectorView<BFloat16> factors) {
  launch(stream, {"wide_logits", blocks_for(pieces.size, 1), kThreads, kLogitsSharedBytes<kTokens>},
         wide_logits_kernel<kTokens>, head, pieces);
  launch(stream, {"wide_factors", blocks_for(units.size, 1), kThreads, shared_bytes<float>(kThreads)},
         wide_factors_kernel<kTokens>, head, units, factors);
  const dim3 grid(blocks_for(units.size, 1), blocks_for(head.weight.cols, kBlockColumns));
  launch(stream, {"wide_sums", grid, kThreads, kSumsSharedBytes<kTokens>}, wide_sums_kernel<kTokens>, head, units,
         factors);
}

}  // namespace

void wide_tile_head(const CudaStream& stream, const HeadArguments<BFloat16>& head, std::int64_t most_tokens,
                    HeadPieces units, HeadPieces pieces, VectorView<BFloat16> factors) {
  static_assert(kWideLogitIds == kWarps * kStripRows);
  if (units.empty()) return;
  REPRISE_CUDA_CHECK(has_aligned_rows(head), "wide_tile_head: rows of ", head.weight.cols, " elements");
  if (most_tokens <= 8) {
    launch_wide<8>(stream, head, units, pieces, factors);
  } else if (most_tokens <= 32) {
    launch_wide<32>(stream, head, units, pieces, factors);
  } else {
    launch_wide<64>(stream, head, units, pieces, factors);
  }
}

}  // namespace reprise
