// The restricted head for tiles of up to 8 tokens in bfloat16, on tensor cores: 16 listed rows of W as M, 8 tokens as N
// give the logits; columns of W as M, the same rows as K give the gradient of the hidden states.
//
// One block per piece, one warp for each 512 columns: 8 strips of h (operand b, registers), of the accumulator
// (registers) and of the rows, which the warp brings itself into its own ring of kSlots strips (cp.async). A group of
// 16 rows passes twice, for the logits and, once they are summed over the warps, for the gradient; its strips leave the
// ring one by one then, and those of the next rows take their places. The only barrier of a group is for that sum.
// Every warp works out the softmax of the whole group for itself: a lane has 4 logits of one token, in the places that
// operand b wants. The maximum-subtracted exponentials are rounded to bfloat16 there; their sum is not.
//
// A group of D = 4096 brings 128 KB. Shared memory moves it three times, about 3,100 cycles of an SM, the tensor cores
// need 800, L2 brings it in about 5,500 (5.5 TB/s over 132 SMs): the limit is L2, and 5 strips a warp (80 KB) on their
// way during the logits keep it busy. H100, V = 128256, D = 4096, T = 4096 in tiles of 8, lm sets of K = 100
// (|U| about 440): 512 tiles, 1.85 GB, 0.34 ms at 5.5 TB/s; 59 GFLOP.
#include "core/cuda/launch.hpp"
#include "loss/head_strips.cuh"

namespace reprise {
namespace {

constexpr int kStrips = 8;  // of a warp
constexpr int kWarpColumns = kStrips * kStripColumns;
constexpr int kMostWarps = kMaxTileHeadDepth / kWarpColumns;
constexpr int kSteps = kStripColumns / 16;  // products of a strip
constexpr int kTokens = 8;
constexpr int kPartialStride = 20;  // floats from token to token: the writes of a warp fall into 32 banks

constexpr std::size_t shared_bytes_of(int warps, int slots) {
  return shared_bytes<BFloat16>(warps * slots * kStripElements) +
         shared_bytes<float>(2 * warps * kTokens * kPartialStride);
}

__device__ inline int num_warps() {
  return static_cast<int>(blockDim.x) / kWarpSize;
}
/// Column of the warp's strip `index`.
__device__ inline int strip_column(int index) {
  return warp_index() * kWarpColumns + index * kStripColumns;
}

/// The warp's strips of h as operand b: B(k, token).
__device__ inline void load_hidden(unsigned (&hidden)[kStrips][kSteps][2], const HeadArguments<BFloat16>& head,
                                   const HeadPiece& piece) {
  const int token = lane_index() / 4, pair = lane_index() % 4 * 2;
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
#pragma unroll
    for (int word = 0; word < 2 * kSteps; ++word) {
      const int column = strip_column(i) + word * 8 + pair;
      const bool is_valid = token < piece.tokens && column < head.hidden.cols;
      hidden[i][word / 2][word % 2] =
          is_valid ? *reinterpret_cast<const unsigned*>(head.hidden.row(piece.token_begin + token).data + column) : 0U;
    }
  }
}

/// What a lane knows of the softmax of a group of rows: for its token lane / 4, the factors of the rows p, p + 1, p + 8
/// and p + 9 as operand b, and for the tokens p and p + 1 by how much earlier sums shrink (p = lane % 4 * 2).
struct GroupSoftmax {
  unsigned factors[2];
  float shrink[2];
};

__device__ inline GroupSoftmax take_group(const float* partial, const HeadArguments<BFloat16>& head,
                                          const HeadPiece& piece, int num_rows, int first, OnlineSoftmax& softmax) {
  const int token = lane_index() / 4, pair = lane_index() % 4 * 2;
  float logits[4], factors[4];
  float top = -INFINITY;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float low = 0.0f, high = 0.0f;
    for (int w = 0; w < num_warps(); ++w) {
      const auto two = load_pack<2>(partial, (w * kTokens + token) * kPartialStride + pair + 8 * half);
      low += two[0], high += two[1];
    }
    logits[2 * half] = logit_of(head.rule, low), logits[2 * half + 1] = logit_of(head.rule, high);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int k = pair + i % 2 + i / 2 * 8;
    if (k >= num_rows) logits[i] = -INFINITY;
    top = fmaxf(top, logits[i]);
    if (k < num_rows && token < piece.tokens && warp_index() == first / kStripRows % num_warps()) {
      head.logits[piece.logits + std::int64_t{first + k} * piece.logits_stride + token] = logits[i];
    }
  }
  top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
  const float shrink = softmax.raise(top);
  float added = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float power = pair + i % 2 + i / 2 * 8 < num_rows ? expf(logits[i] - softmax.max) : 0.0f;
    added += power;
    factors[i] = power == 0.0f ? 0.0f : power * slope_of(head.rule, logits[i]);
  }
  added += __shfl_xor_sync(kAllLanes, added, 1);
  added += __shfl_xor_sync(kAllLanes, added, 2);
  softmax.sum += added;
  return {{pack_bfloat16(factors[0], factors[1]), pack_bfloat16(factors[2], factors[3])},
          {__shfl_sync(kAllLanes, shrink, 4 * pair), __shfl_sync(kAllLanes, shrink, 4 * pair + 4)}};
}

/// The warp's part of the logits of 16 rows x 8 tokens.
__device__ inline void store_partial(float* partial, const float (&even)[4], const float (&odd)[4]) {
  const int row = lane_index() / 4, pair = lane_index() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    partial[(warp_index() * kTokens + pair + i % 2) * kPartialStride + row + i / 2 * 8] = even[i] + odd[i];
  }
}

__device__ inline void shrink_sums(float (&sums)[kStrips][kSteps][4], const GroupSoftmax& group) {
  if (__any_sync(kAllLanes, group.shrink[0] != 1.0f || group.shrink[1] != 1.0f) == 0) return;
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][step][j] *= group.shrink[j % 2];
    }
  }
}

__device__ inline void store_accumulator(const float (&sums)[kStrips][kSteps][4], const HeadArguments<BFloat16>& head,
                                         const HeadPiece& piece) {
  const int row = lane_index() / 4, pair = lane_index() % 4 * 2;
  const MatrixView<float> accumulator = results_of(head, piece).accumulator;
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = strip_column(i) + step * 16 + row + j / 2 * 8;
        const int token = pair + j % 2;
        if (token < piece.tokens && column < accumulator.cols) {
          accumulator(result_row(piece, token), column) = sums[i][step][j];
        }
      }
    }
  }
}

template <int kSlots>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 1)
    tile_head_kernel(HeadArguments<BFloat16> head, HeadPieces pieces) {
  // The strip that is asked for is always kSlots ahead of the one that is used up: as many groups and strips.
  constexpr int kGroupsAhead = kSlots / kStrips, kStripsAhead = kSlots % kStrips;
  static_assert(kGroupsAhead == 1);
  const HeadPiece& piece = pieces[blockIdx.x];  // looked up where it is used: registers are short
  const std::int32_t* const ids = head.ids + piece.id_begin;
  const int num_ids = piece.num_ids;
  SharedMemory shared;
  BFloat16* const ring =
      shared.take<BFloat16>(num_warps() * kSlots * kStripElements) + warp_index() * kSlots * kStripElements;
  float* const both_partials = shared.take<float>(2 * num_warps() * kTokens * kPartialStride);

  StripRows asked;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    if (i % kStrips == 0) asked.look_up(ids, num_ids, i / kStrips * kStripRows, head.first_id);
    ask_for_strip(ring + i * kStripElements, head.weight, asked, strip_column(i % kStrips));
    commit_copies();
  }

  unsigned hidden[kStrips][kSteps][2];
  load_hidden(hidden, head, piece);
  float sums[kStrips][kSteps][4] = {};
  OnlineSoftmax softmax;
  int oldest = 0;  // slot of the group's first strip
  for (int first = 0; first < num_ids; first += kStripRows) {
    float even[4] = {}, odd[4] = {};
    for_each_constant<kStrips>([&](auto i) {
      wait_for_copies<kSlots - 1 - i>();
      __syncwarp();
      const BFloat16* const strip = ring + (oldest + i < kSlots ? oldest + i : oldest + i - kSlots) * kStripElements;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned a[4];
        load_rows_first(a, strip, step);
        mma_m16n8k16(step % 2 == 0 ? even : odd, a, hidden[i][step]);
      }
    });
    float* const partial = both_partials + first / kStripRows % 2 * (num_warps() * kTokens * kPartialStride);
    store_partial(partial, even, odd);
    __syncthreads();

    const GroupSoftmax group = take_group(partial, head, piece, num_ids - first, first, softmax);
    shrink_sums(sums, group);
    StripRows next;
    next.look_up(ids, num_ids, first + (kGroupsAhead + 1) * kStripRows, head.first_id);
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      BFloat16* const strip = ring + (oldest + i < kSlots ? oldest + i : oldest + i - kSlots) * kStripElements;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        unsigned a[4];
        load_columns_first(a, strip, step);
        mma_m16n8k16(sums[i][step], a, group.factors);
      }
      __syncwarp();
      if (i + kStripsAhead == kStrips) asked = next;
      ask_for_strip(strip, head.weight, asked, strip_column((i + kStripsAhead) % kStrips));
      commit_copies();
    }
    oldest = oldest + kStrips < kSlots ? oldest + kStrips : oldest + kStrips - kSlots;
  }
  wait_for_copies<0>();

  store_accumulator(sums, head, piece);
  if (warp_index() == 0 && lane_index() % 4 == 0 && lane_index() / 4 < piece.tokens) {
    results_of(head, piece).statistics[result_row(piece, lane_index() / 4)] = {softmax.max, softmax.sum, 0.0f};
  }
}

template <int kSlots>
void launch_tile_head(const CudaStream& stream, const HeadArguments<BFloat16>& head, HeadPieces pieces, int warps) {
  const LaunchShape shape{"tile_head", blocks_for(pieces.size, 1), static_cast<unsigned>(warps * kWarpSize),
                          shared_bytes_of(warps, kSlots)};
  launch(stream, shape, tile_head_kernel<kSlots>, head, pieces);
}

}  // namespace

void tile_head(const CudaStream& stream, const HeadArguments<BFloat16>& head, HeadPieces pieces) {
  if (pieces.empty()) return;
  const std::int64_t depth = head.weight.cols;
  REPRISE_CUDA_CHECK(has_aligned_rows(head) && depth <= kMaxTileHeadDepth, "tile_head: rows of ", depth, " elements");
  const int warps = static_cast<int>((depth + kWarpColumns - 1) / kWarpColumns);
  int most_shared_bytes = 0;
  REPRISE_CUDA(cudaDeviceGetAttribute(&most_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device));
  if (static_cast<std::size_t>(most_shared_bytes) >= shared_bytes_of(kMostWarps, 13)) {
    launch_tile_head<13>(stream, head, pieces, warps);
  } else {  // before sm_90
    launch_tile_head<9>(stream, head, pieces, warps);
  }
}

}  // namespace reprise
