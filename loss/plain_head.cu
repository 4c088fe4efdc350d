// The restricted head without tensor cores: float32 tiles, and every D or alignment that the other kernels do not take.
//
// One block per piece of up to kTokens tokens; thread i owns packs of columns of the rows and of the accumulator (in
// registers for aligned rows up to D = 4096, else in global memory). A group of 4 rows gives 4 kTokens dot products;
// one barrier for their sum over the warps; then the rows are read again, now from L1, for the gradient. With 8 tokens
// a row element makes 16 multiply-adds, so this kernel is bound by arithmetic: D = 4096, tiles of 8 with |U| = 440, T =
// 4096: 59 GFLOP, 0.9 ms on an H100 at 67 TFLOP/s.
#include "core/cuda/launch.hpp"
#include "loss/head_device.cuh"

namespace reprise {
namespace {

constexpr int kRows = 4;
constexpr int kSize = 4;  // columns of a pack

/// The accumulator in registers: columns (pack kThreads + thread) kSize of rows that fill whole packs.
template <int kTokens, int kThreads, int kPacks>
struct RegisterSums {
  static constexpr int kColumns = kPacks * kThreads * kSize;  ///< the largest D
  float sums[kPacks][kTokens][kSize] = {};

  __device__ static int column(int pack) { return (pack * kThreads + static_cast<int>(threadIdx.x)) * kSize; }

  template <class T>
  __device__ void add_dots(const T* const (&rows)[kRows], const float* hidden, int depth,
                           float (&dots)[kRows * kTokens]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (column(p) >= depth) continue;
      Pack<T, kSize> words[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) words[r] = load_pack<kSize>(rows[r], column(p));
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const auto h = load_pack<kSize>(hidden + t * kColumns, column(p));
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int e = 0; e < kSize; ++e) {
            dots[r * kTokens + t] = fmaf(to_float(words[r][e]), h[e], dots[r * kTokens + t]);
          }
        }
      }
    }
  }
  template <class T>
  __device__ void add_rows(const T* const (&rows)[kRows], const float* factors, const float* shrink, int depth) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (column(p) >= depth) continue;
      Pack<T, kSize> words[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) words[r] = load_pack<kSize>(rows[r], column(p));
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          float sum = sums[p][t][e] * shrink[t];
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum = fmaf(factors[r * kTokens + t], to_float(words[r][e]), sum);
          sums[p][t][e] = sum;
        }
      }
    }
  }
  __device__ void store(MatrixView<float> accumulator, std::int64_t first_row, int tokens) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (column(p) >= accumulator.cols) continue;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t >= tokens) continue;
        store_pack(accumulator.row(first_row + t).data, column(p),
                   Pack<float, kSize>{{sums[p][t][0], sums[p][t][1], sums[p][t][2], sums[p][t][3]}});
      }
    }
  }
};

/// What a block of plain_head knows beside its sums.
template <int kTokens, int kThreads>
struct GroupOfRows {
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kLogits = kRows * kTokens;
  static constexpr std::size_t kSharedBytes =
      shared_bytes<float>(2 * kWarps * kLogits) + shared_bytes<float>(kWarps * (kLogits + kTokens));

  float* dots_of_warps;   ///< [2, warps, logits]
  float* factors;         ///< [logits] of this warp
  float* shrink;          ///< [tokens] of this warp
  OnlineSoftmax softmax;  ///< of token lane % kTokens

  __device__ explicit GroupOfRows(SharedMemory& shared)
      : dots_of_warps(shared.take<float>(2 * kWarps * kLogits)),
        factors(shared.take<float>(kWarps * (kLogits + kTokens)) + warp_index() * (kLogits + kTokens)),
        shrink(factors + kLogits) {}

  /// From every thread's part of the dot products to logits, factors and the running softmax. One barrier.
  template <class T>
  __device__ void take(const HeadArguments<T>& head, const HeadPiece& piece, int first, const float (&dots)[kLogits]) {
    float* const group = dots_of_warps + first / kRows % 2 * kWarps * kLogits;
    const float part = transposed_warp_sum(dots);
    const int logit_index = lane_index() % kLogits, row = logit_index / kTokens, token = logit_index % kTokens;
    if (lane_index() < kLogits) group[warp_index() * kLogits + lane_index()] = part;
    __syncthreads();
    float dot = 0.0f;
    for (int w = 0; w < kWarps; ++w) dot += group[w * kLogits + logit_index];
    const bool is_row = first + row < piece.num_ids;
    const float logit = is_row ? logit_of(head.rule, dot) : -INFINITY;
    if (threadIdx.x < kLogits && is_row && token < piece.tokens) {
      head.logits[piece.logits + std::int64_t{first + row} * piece.logits_stride + token] = logit;
    }
    float top = logit;
#pragma unroll
    for (int distance = kTokens; distance < kLogits; distance *= 2) {
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, distance));
    }
    const float shrunk = softmax.raise(top);
    const float power = is_row ? expf(logit - softmax.max) : 0.0f;
    float added = power;
#pragma unroll
    for (int distance = kTokens; distance < kLogits; distance *= 2) {
      added += __shfl_xor_sync(kAllLanes, added, distance);
    }
    softmax.sum += added;
    if (lane_index() < kLogits) factors[lane_index()] = is_row ? power * slope_of(head.rule, logit) : 0.0f;
    if (lane_index() < kTokens) shrink[lane_index()] = shrunk;
    __syncwarp();
  }
  /// Before factors and shrink are written again.
  __device__ void release() const {
    __syncwarp();
  }
};

template <class T>
__device__ void find_rows(const HeadArguments<T>& head, const HeadPiece& piece, int first, const T* (&rows)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {  // behind the end the last row, with factor 0
    const int k = min(first + r, piece.num_ids - 1);
    rows[r] = head.weight.row(head.ids[piece.id_begin + k] - head.first_id).data;
  }
}

template <int kTokens, class T>
__device__ void store_statistics(const HeadArguments<T>& head, const HeadPiece& piece, const OnlineSoftmax& softmax) {
  if (threadIdx.x < kTokens && static_cast<int>(threadIdx.x) < piece.tokens) {
    results_of(head, piece).statistics[result_row(piece, static_cast<int>(threadIdx.x))] = {softmax.max, softmax.sum,
                                                                                            0.0f};
  }
}

template <int kTokens, int kThreads, int kPacks>
constexpr std::size_t kAlignedSharedBytes =
    GroupOfRows<kTokens, kThreads>::kSharedBytes +
    shared_bytes<float>(kTokens* RegisterSums<kTokens, kThreads, kPacks>::kColumns);

template <class T, int kTokens, int kThreads, int kPacks>
__global__ void __launch_bounds__(kThreads) aligned_plain_head_kernel(HeadArguments<T> head, HeadPieces pieces) {
  using Sums = RegisterSums<kTokens, kThreads, kPacks>;
  const HeadPiece piece = pieces[blockIdx.x];
  const auto depth = static_cast<int>(head.weight.cols);
  SharedMemory shared;
  GroupOfRows<kTokens, kThreads> group(shared);
  float* const hidden = shared.take<float>(kTokens * Sums::kColumns);
  for (int t = 0; t < kTokens; ++t) {
    for (int i = static_cast<int>(threadIdx.x); i < depth; i += kThreads) {
      hidden[t * Sums::kColumns + i] = t < piece.tokens ? to_float(head.hidden(piece.token_begin + t, i)) : 0.0f;
    }
  }
  __syncthreads();

  Sums sums;
  for (int first = 0; first < piece.num_ids; first += kRows) {
    const T* rows[kRows];
    find_rows(head, piece, first, rows);
    float dots[kRows * kTokens] = {};
    sums.add_dots(rows, hidden, depth, dots);
    group.take(head, piece, first, dots);
    sums.add_rows(rows, group.factors, group.shrink, depth);
    group.release();
  }
  sums.store(results_of(head, piece).accumulator, result_row(piece, 0), piece.tokens);
  store_statistics<kTokens>(head, piece, group.softmax);
}

template <class T, int kTokens, int kThreads>
__global__ void __launch_bounds__(kThreads) any_plain_head_kernel(HeadArguments<T> head, HeadPieces pieces) {
  const HeadPiece piece = pieces[blockIdx.x];
  const std::int64_t depth = head.weight.cols, first_row = result_row(piece, 0);
  const MatrixView<float> accumulator = results_of(head, piece).accumulator;
  SharedMemory shared;
  GroupOfRows<kTokens, kThreads> group(shared);
  for (int t = 0; t < piece.tokens; ++t) {
    for (std::int64_t i = threadIdx.x; i < depth; i += kThreads) accumulator(first_row + t, i) = 0.0f;
  }
  for (int first = 0; first < piece.num_ids; first += kRows) {
    const T* rows[kRows];
    find_rows(head, piece, first, rows);
    float dots[kRows * kTokens] = {};
    for (std::int64_t i = threadIdx.x; i < depth; i += kThreads) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float h = t < piece.tokens ? to_float(head.hidden(piece.token_begin + t, i)) : 0.0f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) dots[r * kTokens + t] = fmaf(to_float(rows[r][i]), h, dots[r * kTokens + t]);
      }
    }
    group.take(head, piece, first, dots);
    for (std::int64_t i = threadIdx.x; i < depth; i += kThreads) {
      for (int t = 0; t < piece.tokens; ++t) {
        float sum = accumulator(first_row + t, i) * group.shrink[t];
        for (int r = 0; r < kRows; ++r) sum = fmaf(group.factors[r * kTokens + t], to_float(rows[r][i]), sum);
        accumulator(first_row + t, i) = sum;
      }
    }
    group.release();
  }
  store_statistics<kTokens>(head, piece, group.softmax);
}

template <class T, int kThreads, int kPacks>
void launch_aligned(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces) {
  constexpr int kTokens = static_cast<int>(kTileTokens);
  const LaunchShape shape{"plain_head", blocks_for(pieces.size, 1), kThreads,
                          kAlignedSharedBytes<kTokens, kThreads, kPacks>};
  launch(stream, shape, aligned_plain_head_kernel<T, kTokens, kThreads, kPacks>, head, pieces);
}

}  // namespace

template <class T>
void plain_head(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces) {
  if (pieces.empty()) return;
  const std::int64_t depth = head.weight.cols;
  if constexpr (std::is_same_v<T, float>) {
    if (has_aligned_rows(head) && depth <= 512) return launch_aligned<T, 128, 1>(stream, head, pieces);
    if (has_aligned_rows(head) && depth <= 2048) return launch_aligned<T, 256, 2>(stream, head, pieces);
    if (has_aligned_rows(head) && depth <= 4096) return launch_aligned<T, 256, 4>(stream, head, pieces);
  }
  constexpr int kThreads = 128, kTokens = static_cast<int>(kTileTokens);
  const LaunchShape shape{"plain_head", blocks_for(pieces.size, 1), kThreads,
                          GroupOfRows<kTokens, kThreads>::kSharedBytes};
  launch(stream, shape, any_plain_head_kernel<T, kTokens, kThreads>, head, pieces);
}

template void plain_head(const CudaStream&, const HeadArguments<float>&, HeadPieces);
template void plain_head(const CudaStream&, const HeadArguments<BFloat16>&, HeadPieces);

}  // namespace reprise
