#include <type_traits>

#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "core/dtype.hpp"
#include "core/transfer.hpp"
#include "loss/row_gradient.hpp"

// A block keeps 128 bytes of columns of all tokens' hidden states in shared memory and walks rows; eight lanes of a
// warp own one row's 128 bytes of columns (16 bytes each: a conflict-free read of shared memory) and sum in registers.
// A quarter of a warp needs nothing from the others but its trip count, so rows come ordered by length.
//
// Per unit of work: a listed row reads and writes 8 D bytes of d_weight and its units (8 bytes, read once per panel); a
// (row, token) pair costs 2 D FLOP and D sizeof(T) bytes of shared memory. On an H100 rows bound it: at T = 4096, D =
// 4096, K = 100 of 128256 ids (lm sets) some 32,000 rows in 3 lists are 1.05 GB, 0.35 ms at 3 TB/s, and the pairs that
// are left to this kernel, 180,000, take 0.08 ms of shared memory. docs/kernels.md has the whole reckoning.

namespace reprise {
namespace {

constexpr int kThreads = 1024;
constexpr int kRowLanes = 8;                      // lanes of one row
constexpr int kWarpRows = kWarpSize / kRowLanes;  // rows that a warp sums side by side
constexpr int kPanelBytes = kRowLanes * 16;       // of one token's columns in shared memory
constexpr int kReserveBytes = 1024;               // of shared memory that the driver keeps
constexpr int kSpareTokens = kRowUnitTokens - 1;  // a short unit at the end reads zeros behind the last token

template <class T>
constexpr int kLaneColumns = kPackSize<T>;
template <class T>
constexpr int kColumns = kRowLanes* kLaneColumns<T>;  // of a panel

/// panel [tokens + spare, kColumns]: the columns from `first_column` on, zero behind the last column and token.
template <class T>
__device__ void load_panel(MatrixView<const T> hidden, std::int64_t first_column, bool is_aligned, T* panel) {
  if (is_aligned) {
    for (std::int64_t i = threadIdx.x; i < hidden.rows * kRowLanes; i += kThreads) {
      const std::int64_t token = i / kRowLanes, column = first_column + i % kRowLanes * kLaneColumns<T>;
      const bool is_inside = column < hidden.cols;
      copy_async<16>(panel + i * kLaneColumns<T>, is_inside ? &hidden(token, column) : hidden.data, is_inside);
    }
    commit_copies();
  } else {
    for (std::int64_t i = threadIdx.x; i < hidden.rows * kColumns<T>; i += kThreads) {
      const std::int64_t token = i / kColumns<T>, column = first_column + i % kColumns<T>;
      panel[i] = column < hidden.cols ? hidden(token, column) : T{};
    }
  }
  T* const spare = panel + hidden.rows * kColumns<T>;
  for (int i = static_cast<int>(threadIdx.x); i < kSpareTokens * kColumns<T>; i += kThreads) spare[i] = T{};
  wait_for_copies<0>();
  __syncthreads();
}

/// This lane's columns of a row of d_weight.
template <class T>
struct RowPart {
  float* row;                // at the lane's first column
  std::int64_t num_columns;  // inside the matrix, may be negative
  bool is_aligned;

  __device__ void load(float (&values)[kLaneColumns<T>]) const {
    constexpr int kPack = kPackSize<float>;
    for (int c = 0; c < kLaneColumns<T>; c += kPack) {
      if (is_aligned && c < num_columns) {
        const auto pack = load_pack<kPack>(row, c);
        for (int j = 0; j < kPack; ++j) values[c + j] = pack[j];
      } else {
        for (int j = 0; j < kPack; ++j) values[c + j] = c + j < num_columns ? row[c + j] : 0.0f;
      }
    }
  }
  __device__ void store(const float (&values)[kLaneColumns<T>]) const {
    constexpr int kPack = kPackSize<float>;
    for (int c = 0; c < kLaneColumns<T>; c += kPack) {
      if (is_aligned && c < num_columns) {
        Pack<float, kPack> pack;
        for (int j = 0; j < kPack; ++j) pack[j] = values[c + j];
        store_pack(row, c, pack);
      } else {
        for (int j = 0; j < kPack; ++j) {
          if (c + j < num_columns) row[c + j] = values[c + j];
        }
      }
    }
  }
};

/// Where the lane's next kRowUnitTokens tokens and deltas come from. Each of the eight lanes of a row brings one.
struct Step {
  int token;
  float delta;
};
__device__ Step load_step(const TokenDelta* entries, const float*, int index, int end) {
  const int own = index + lane_index() % kRowLanes;
  const TokenDelta entry = own < end ? entries[own] : TokenDelta{0, 0.0f};
  return {entry.token, entry.delta};
}
__device__ Step load_step(const RowUnit* units, const float* deltas, int index, int end) {
  if (index >= end) return {0, 0.0f};
  const RowUnit unit = units[index];
  const int lane = lane_index() % kRowLanes;
  return {unit.token(), lane < unit.count() ? deltas[unit.deltas + lane] : 0.0f};
}

/// Entry: TokenDelta, one token each, eight of them a step; or RowUnit, one a step.
template <class T, class Entry>
__global__ void __launch_bounds__(kThreads, 1)
    row_gradient_kernel(MatrixView<const T> hidden, RowList list, const Entry* entries, const float* deltas,
                        MatrixView<float> d_weight, bool is_aligned) {
  constexpr bool kIsUnit = std::is_same_v<Entry, RowUnit>;
  constexpr int kStep = kIsUnit ? 1 : kRowLanes;
  SharedMemory shared;
  T* const panel = shared.take<T>((hidden.rows + kSpareTokens) * kColumns<T>);
  const std::int64_t first_column = std::int64_t{blockIdx.x} * kColumns<T>;
  load_panel<T>(hidden, first_column, is_aligned, panel);

  const int quarter = lane_index() / kRowLanes, lane = lane_index() % kRowLanes;
  const std::int64_t column = first_column + lane * kLaneColumns<T>;
  const T* const own_columns = panel + lane * kLaneColumns<T>;
  const std::int64_t warps = std::int64_t{gridDim.y} * (kThreads / kWarpSize);
  const std::int64_t groups = (list.rows.size + kWarpRows - 1) / kWarpRows;
  for (std::int64_t group = blockIdx.y + std::int64_t{gridDim.y} * warp_index(); group < groups; group += warps) {
    const std::int64_t first = group * kWarpRows, index = first + quarter;
    const bool has_row = index < list.rows.size;
    const int begin = has_row ? list.begin[index] : 0, end = has_row ? list.begin[index + 1] : 0;
    const int longest = list.begin[first + 1] - list.begin[first];
    const std::int64_t row = has_row ? list.rows[index] : 0;
    device_check(end - begin <= longest, "rows are not ordered by their number of units");
    const RowPart<T> part{d_weight.row(row).data + column, has_row ? d_weight.cols - column : 0, is_aligned};
    float before[kLaneColumns<T>], sum[kLaneColumns<T>];
    part.load(before);  // on its way while the sums are made
    for (int c = 0; c < kLaneColumns<T>; ++c) sum[c] = 0.0f;

    Step next = load_step(entries, deltas, begin, end);
    for (int i = 0; i < longest; i += kStep) {
      const Step step = next;
      next = load_step(entries, deltas, begin + i + kStep, end);
      for (int j = 0; j < kRowLanes; ++j) {
        const int source = quarter * kRowLanes + j;
        const float delta = __shfl_sync(kAllLanes, step.delta, source);
        const int token = kIsUnit ? step.token + j : __shfl_sync(kAllLanes, step.token, source);
        const auto h = load_pack<kLaneColumns<T>>(own_columns, std::int64_t{token} * kColumns<T>);
        for (int c = 0; c < kLaneColumns<T>; ++c) sum[c] = fmaf(delta, to_float(h[c]), sum[c]);
      }
    }
    for (int c = 0; c < kLaneColumns<T>; ++c) sum[c] += before[c];
    part.store(sum);
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_deltas_kernel(VectorView<const RowUnit> units, VectorView<const float> deltas, TokenDelta* entries) {
  const std::int64_t i = global_thread_index();
  if (i < units.size) entries[i] = {units[i].token(), deltas[units[i].deltas]};
}

/// One block a row.
template <class T>
__global__ void __launch_bounds__(kWarpSize* kRowUnitTokens)
    fill_dense_deltas_kernel(RowList list, VectorView<const float> deltas, MatrixView<T> dense) {
  constexpr int kBlock = kWarpSize * kRowUnitTokens;
  const int begin = list.begin[blockIdx.x], end = list.begin[blockIdx.x + 1];
  const int lane = static_cast<int>(threadIdx.x) % list.unit_tokens;
  for (int i = begin + static_cast<int>(threadIdx.x) / list.unit_tokens; i < end; i += kBlock / list.unit_tokens) {
    const RowUnit unit = list.units[i];
    if (lane < unit.count()) dense(unit.token() + lane, blockIdx.x) = from_float<T>(deltas[unit.deltas + lane]);
  }
}

int device_attribute(const CudaStream& stream, cudaDeviceAttr attribute) {
  int value = 0;
  REPRISE_CUDA(cudaDeviceGetAttribute(&value, attribute, stream.device));
  return value;
}

/// Blocks that share a panel's rows, so that the last round of blocks fills the GPU. The sums do not depend on it.
unsigned choose_parts(const CudaStream& stream, unsigned panels) {
  constexpr unsigned kMostParts = 8;
  const auto multiprocessors = static_cast<unsigned>(device_attribute(stream, cudaDevAttrMultiProcessorCount));
  unsigned best = 1;
  double best_share = 0.0;
  for (unsigned parts = 1; parts <= kMostParts; ++parts) {
    const unsigned blocks = panels * parts, rounds = (blocks + multiprocessors - 1) / multiprocessors;
    const double share = static_cast<double>(blocks) / (rounds * multiprocessors);
    if (share > best_share + 0.02) best = parts, best_share = share;  // every part loads the panel again
  }
  return best;
}

}  // namespace

std::int64_t most_gradient_tokens(const CudaStream& stream) {
  const int bytes = device_attribute(stream, cudaDevAttrMaxSharedMemoryPerBlockOptin) - kReserveBytes;
  return bytes / kPanelBytes - kSpareTokens;
}

template <class T>
void add_row_gradients(const CudaStream& stream, MatrixView<const T> hidden, const RowList& list,
                       VectorView<const float> deltas, VectorView<TokenDelta> scratch, MatrixView<float> d_weight) {
  REPRISE_CUDA_CHECK(d_weight.cols == hidden.cols, "add_row_gradients: d_weight has ", d_weight.cols,
                     " columns, hidden ", hidden.cols);
  if (list.rows.empty()) return;
  const auto is_aligned_at = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  const bool is_aligned =
      hidden.cols % kLaneColumns<T> == 0 && is_aligned_at(hidden.data) && is_aligned_at(d_weight.data);
  const unsigned panels = blocks_for(hidden.cols, kColumns<T>);
  const LaunchShape shape{"row_gradient", dim3(panels, choose_parts(stream, panels)), kThreads,
                          shared_bytes<T>((hidden.rows + kSpareTokens) * kColumns<T>)};
  if (list.unit_tokens == kRowUnitTokens) {
    launch(stream, shape, row_gradient_kernel<T, RowUnit>, hidden, list, list.units.data, deltas.data, d_weight,
           is_aligned);
    return;
  }
  // Every panel reads the deltas: once put in order they are whole cache lines.
  REPRISE_CUDA_CHECK(scratch.size >= list.units.size, "add_row_gradients: scratch for ", scratch.size, " of ",
                     list.units.size, " deltas");
  launch(stream, {"gather_deltas", blocks_for(list.units.size, kThreads), kThreads}, gather_deltas_kernel, list.units,
         deltas, scratch.data);
  launch(stream, shape, row_gradient_kernel<T, TokenDelta>, hidden, list, scratch.data, nullptr, d_weight, is_aligned);
}

template <class T>
void fill_dense_deltas(const CudaStream& stream, const RowList& list, VectorView<const float> deltas,
                       MatrixView<T> dense) {
  REPRISE_CUDA_CHECK(dense.cols >= list.rows.size, "fill_dense_deltas: ", list.rows.size, " rows in ", dense.cols,
                     " columns");
  detail::zero_bytes(stream, dense.data, dense.size() * static_cast<std::int64_t>(sizeof(T)));
  launch(stream, {"fill_dense_deltas", blocks_for(list.rows.size, 1), kWarpSize * kRowUnitTokens},
         fill_dense_deltas_kernel<T>, list, deltas, dense);
}

#define REPRISE_INSTANTIATE(T)                                                                                     \
  template void add_row_gradients(const CudaStream&, MatrixView<const T>, const RowList&, VectorView<const float>, \
                                  VectorView<TokenDelta>, MatrixView<float>);                                      \
  template void fill_dense_deltas(const CudaStream&, const RowList&, VectorView<const float>, MatrixView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
