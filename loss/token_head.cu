// The restricted head for sets of one token: a sparse attention with one query, keys and values the listed rows of W.
//
// One block per piece. Thread i owns the 16-byte words i, i + threads, ... of every row: it asks for them (cp.async,
// kStages groups of kRows rows ahead), reads them back from its own places in shared memory, and holds the same columns
// of h and of the accumulator in registers. So no barrier guards the ring; the one barrier per group of rows is for the
// sum of the dot products over the warps.
//
// A row of D elements costs D sizeof(T) bytes from L2 and 4 D FLOP. Shared memory moves it three times (128 bytes a
// cycle and multiprocessor), arithmetic is 4 instructions an element pair of passes, so an SM could take a bfloat16 row
// of 4096 in about 200 cycles; L2 delivers one in about 350 (5.5 TB/s over 132 SMs at 1.755 GHz): the limit is L2.
// H100, V = 128256, D = 4096, K = 100, T = 4096: 3.36 GB, 0.61 ms at 5.5 TB/s. Two blocks of an SM keep 128 KB on their
// way, four times what latency times bandwidth asks for.
#include "core/cuda/launch.hpp"
#include "loss/head_device.cuh"

namespace reprise {
namespace {

constexpr int kStages = 3;

/// kThreads threads with kElements columns each, rows taken kRows at a time.
template <class T, int kThreads, int kElements>
struct TokenShape {
  static constexpr int kDepth = kThreads * kElements;  ///< the largest D
  static constexpr int kRowBytes = kDepth * static_cast<int>(sizeof(T));
  static constexpr int kRows = kRowBytes <= 8192 ? 4 : kRowBytes <= 16384 ? 2 : 1;
  static constexpr int kPacks = kElements / kPackSize<T>;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kBlocks = kThreads == 256 ? 2 : 4;  ///< of a multiprocessor, at least
  static constexpr std::size_t kSharedBytes =
      shared_bytes<T>(kStages * kRows * kDepth) + shared_bytes<float>(2 * kWarps * kRows);
};

/// One thread's part of the rows: where its words lie, on their way and when they are there.
template <class T, int kThreads, int kElements>
class RowRing {
 public:
  using Shape = TokenShape<T, kThreads, kElements>;

  __device__ RowRing(T* places, const HeadArguments<T>& head, const HeadPiece& piece)
      : places_(places + threadIdx.x * kPackSize<T>),
        rows_(head.weight.data + threadIdx.x * kPackSize<T> - head.first_id * head.weight.cols),
        depth_(head.weight.cols),
        ids_(head.ids + piece.id_begin),
        num_ids_(piece.num_ids) {
    look_up();
  }

  /// Asks for the next kRows rows (fewer at the end) as one group.
  __device__ void ask() {
#pragma unroll
    for (int r = 0; r < Shape::kRows; ++r) {
#pragma unroll
      for (int p = 0; p < Shape::kPacks; ++p) {
        const bool is_valid = asked_ + r < num_ids_ && column(p) < depth_;
        copy_async<16>(place(stage_, r, p), is_valid ? rows_ + next_[r] * depth_ + p * kThreads * kPackSize<T> : rows_,
                       is_valid);
      }
    }
    commit_copies();
    asked_ += Shape::kRows;
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    look_up();
  }
  [[nodiscard]] __device__ Pack<T, kPackSize<T>> read(int stage, int row, int pack) const {
    return *reinterpret_cast<const Pack<T, kPackSize<T>>*>(place(stage, row, pack));
  }
  [[nodiscard]] __device__ static std::int64_t column(int pack) {
    return (static_cast<std::int64_t>(pack) * kThreads + threadIdx.x) * kPackSize<T>;
  }

 private:
  __device__ T* place(int stage, int row, int pack) const {
    return places_ + ((stage * Shape::kRows + row) * Shape::kPacks + pack) * (kThreads * kPackSize<T>);
  }
  /// The ids of the rows to ask for next: loaded a group ahead of their use.
  __device__ void look_up() {
#pragma unroll
    for (int r = 0; r < Shape::kRows; ++r) next_[r] = asked_ + r < num_ids_ ? ids_[asked_ + r] : 0;
  }

  T* places_;
  const T* rows_;  // of id 0, this thread's first word
  std::int64_t depth_;
  const std::int32_t* ids_;
  int num_ids_;
  int asked_ = 0, stage_ = 0;
  std::int64_t next_[Shape::kRows];
};

/// From the warps' parts of the dot products of rows `first` and following to their factors exp(z - max) dz/dx, and by
/// how much earlier sums shrink. Every thread works the same few logits out.
template <class Shape, class T>
__device__ inline float take_rows(const float* dots_of_warps, const HeadArguments<T>& head, const HeadPiece& piece,
                                  int first, OnlineSoftmax& softmax, float (&factors)[Shape::kRows]) {
  float logits[Shape::kRows];
  float top = -INFINITY;
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
    float dot = 0.0f;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) dot += dots_of_warps[w * Shape::kRows + r];
    logits[r] = logit_of(head.rule, dot);
    if (first + r >= piece.num_ids) continue;
    top = fmaxf(top, logits[r]);
    if (static_cast<int>(threadIdx.x) == r) {
      head.logits[piece.logits + std::int64_t{first + r} * piece.logits_stride] = logits[r];
    }
  }
  const float shrink = softmax.raise(top);
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
    const float power = first + r < piece.num_ids ? expf(logits[r] - softmax.max) : 0.0f;
    softmax.sum += power;
    factors[r] = power * slope_of(head.rule, logits[r]);
  }
  return shrink;
}

template <class T, int kThreads, int kElements>
__global__ void __launch_bounds__(kThreads, (TokenShape<T, kThreads, kElements>::kBlocks))
    token_head_kernel(HeadArguments<T> head, HeadPieces pieces) {
  using Shape = TokenShape<T, kThreads, kElements>;
  constexpr int kRows = Shape::kRows, kPacks = Shape::kPacks, kSize = kPackSize<T>;
  const HeadPiece piece = pieces[blockIdx.x];
  const std::int64_t depth = head.weight.cols;
  SharedMemory shared;
  T* const places = shared.take<T>(kStages * kRows * Shape::kDepth);
  float* const partial_dots = shared.take<float>(2 * Shape::kWarps * kRows);

  RowRing<T, kThreads, kElements> ring(places, head, piece);
#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) ring.ask();

  float hidden[kPacks][kSize], sums[kPacks][kSize];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    Pack<T, kSize> pack{};
    if (ring.column(p) < depth) pack = load_pack<kSize>(head.hidden.row(piece.token_begin).data, ring.column(p));
#pragma unroll
    for (int e = 0; e < kSize; ++e) hidden[p][e] = to_float(pack[e]), sums[p][e] = 0.0f;
  }

  OnlineSoftmax softmax;
  int stage = 0;
  float* dots_of_warps = partial_dots;
  for (int first = 0; first < piece.num_ids; first += kRows) {
    wait_for_copies<kStages - 2>();
    ring.ask();  // into the stage that was read in the last round

    float dots[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      dots[r] = 0.0f;
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const auto words = ring.read(stage, r, p);
#pragma unroll
        for (int e = 0; e < kSize; ++e) dots[r] = fmaf(to_float(words[e]), hidden[p][e], dots[r]);
      }
    }
    const float dot = transposed_warp_sum(dots);
    if (lane_index() < kRows) dots_of_warps[warp_index() * kRows + lane_index()] = dot;
    __syncthreads();

    // The next round writes to the other half of partial_dots.
    float factors[kRows];
    const float shrink = take_rows<Shape>(dots_of_warps, head, piece, first, softmax, factors);
    if (shrink != 1.0f) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) sums[p][e] *= shrink;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const auto words = ring.read(stage, r, p);
#pragma unroll
        for (int e = 0; e < kSize; ++e) sums[p][e] = fmaf(factors[r], to_float(words[e]), sums[p][e]);
      }
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
    dots_of_warps = dots_of_warps == partial_dots ? partial_dots + Shape::kWarps * kRows : partial_dots;
  }
  wait_for_copies<0>();

  const HeadResults& results = results_of(head, piece);
  const std::int64_t row = result_row(piece, 0);
  float* const accumulator = results.accumulator.row(row).data;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    if (ring.column(p) >= depth) continue;
#pragma unroll
    for (int e = 0; e < kSize; e += 4) {
      store_pack(accumulator, ring.column(p) + e,
                 Pack<float, 4>{{sums[p][e], sums[p][e + 1], sums[p][e + 2], sums[p][e + 3]}});
    }
  }
  if (threadIdx.x == 0) results.statistics[row] = {softmax.max, softmax.sum, 0.0f};
}

template <class T, int kThreads, int kElements>
void launch_token_head(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces) {
  const LaunchShape shape{"token_head", blocks_for(pieces.size, 1), kThreads,
                          TokenShape<T, kThreads, kElements>::kSharedBytes};
  launch(stream, shape, token_head_kernel<T, kThreads, kElements>, head, pieces);
}

}  // namespace

template <class T>
void token_head(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces) {
  if (pieces.empty()) return;
  const std::int64_t depth = head.weight.cols;
  REPRISE_CUDA_CHECK(has_aligned_rows(head) && depth <= kMaxTokenHeadDepth, "token_head: rows of ", depth, " elements");
  if (depth <= 512) {
    launch_token_head<T, 64, 8>(stream, head, pieces);
  } else if (depth <= 1024) {
    launch_token_head<T, 128, 8>(stream, head, pieces);
  } else if (depth <= 2048) {
    launch_token_head<T, 128, 16>(stream, head, pieces);
  } else if (depth <= 4096) {
    launch_token_head<T, 256, 16>(stream, head, pieces);
  } else {
    launch_token_head<T, 256, 32>(stream, head, pieces);
  }
}

template void token_head(const CudaStream&, const HeadArguments<float>&, HeadPieces);
template void token_head(const CudaStream&, const HeadArguments<BFloat16>&, HeadPieces);

}  // namespace reprise
