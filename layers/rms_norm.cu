#include <type_traits>

#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "layers/column_sum.cuh"
#include "layers/rms_norm.hpp"
#include "layers/row_packs.cuh"

// Bound by memory. A row is held in registers between the sum of its squares and its output, so forward reads and
// writes every element once: 4 bytes an element in bfloat16, 8 with the addition. Backward reads x and d_y, reads and
// writes d_x: 8 bytes an element; x and d_y are read again for the second half, from L1.

namespace reprise {

namespace {

constexpr int kThreads = 256;
constexpr int kRowsInTurn = 16;  // of backward, by the same threads, which keep their columns' sums in registers

/// Row r is head r % heads of token r / heads and lies `first_head` heads further in the token's memory; a whole row is
/// one head.
struct NormRows {
  std::int64_t rows, cols, heads, first_head;

  __device__ std::int64_t offset(std::int64_t row, std::int64_t stride, std::int64_t size) const {
    const std::int64_t token = heads == 1 ? row : row / heads;
    return token * stride + (first_head + row - token * heads) * size;
  }
};

template <class T>
struct Strided {
  T* data = nullptr;
  std::int64_t stride = 0;
};

/// Over kRowThreads neighbours (16, 32 or a block of 256), in an order of its own for each of these.
template <int kRowThreads>
__device__ float row_sum(float value, float* scratch) {
  if constexpr (kRowThreads > kWarpSize) {
    return block_sum<kRowThreads>(value, scratch);
  } else {
#pragma unroll
    for (int distance = kRowThreads / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, distance);
    }
    return value;
  }
}

template <class T>
struct NormArguments {
  NormRows shape;
  Strided<const T> x;
  const T* branch;  // null: nothing is added to x
  T* sum;           // as x
  const T* weight;
  float eps;
  Strided<T> y;
  Strided<float> rstd;
  bool is_whole;
};

template <class T, int kRowThreads, int kPacks>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(NormArguments<T> a) {
  SharedMemory shared;
  float* const scratch = kRowThreads > kWarpSize ? shared.take<float>(kThreads / kWarpSize) : nullptr;
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const std::int64_t cols = a.shape.cols, row = global_thread_index() / kRowThreads;
  const bool is_row = row < a.shape.rows;
  const std::int64_t begin = is_row ? a.shape.offset(row, a.x.stride, cols) : 0;
  RowPack values[kPacks] = {};  // zeros behind the end of the row
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const std::int64_t col = static_cast<std::int64_t>(p * kRowThreads + lane) * kRowPack;
    if (!is_row || col >= cols) continue;
    values[p] = load_row(a.x.data + begin, col, cols, a.is_whole);
    if (a.branch != nullptr) {
      const RowPack addends = load_row(a.branch + begin, col, cols, a.is_whole);
#pragma unroll
      for (int i = 0; i < kRowPack; ++i) values[p][i] = to_float(from_float<T>(values[p][i] + addends[i]));
      store_row(a.sum + begin, col, cols, a.is_whole, values[p]);
    }
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) squares += values[p][i] * values[p][i];
  }
  const float factor = 1.0f / sqrtf(row_sum<kRowThreads>(squares, scratch) / static_cast<float>(cols) + a.eps);
  if (!is_row) return;
  if (lane == 0) a.rstd.data[a.shape.offset(row, a.rstd.stride, 1)] = factor;
  T* const y = a.y.data + a.shape.offset(row, a.y.stride, cols);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const std::int64_t col = static_cast<std::int64_t>(p * kRowThreads + lane) * kRowPack;
    if (col >= cols) continue;
    const RowPack weight = load_row(a.weight, col, cols, a.is_whole);
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) values[p][i] *= factor * weight[i];
    store_row(y, col, cols, a.is_whole, values[p]);
  }
}

template <class T>
struct NormBackwardArguments {
  NormRows shape;
  Strided<const T> x;
  const T* weight;
  Strided<const float> rstd;
  Strided<const T> d_y;
  Strided<T> d_x;  // may be d_y
  bool accumulates;
  MatrixView<float> partials;  // [blocks, cols]
  bool is_whole;
};

/// The threads of a row do kRowsInTurn rows one behind the other; a block leaves one row of partial sums of d_weight.
template <class T, int kRowThreads, int kPacks>
__global__ void __launch_bounds__(kThreads) rms_norm_backward_kernel(NormBackwardArguments<T> a) {
  constexpr int kGroups = kThreads / kRowThreads;
  SharedMemory shared;
  float* const scratch = shared.take<float>(kGroups == 1 ? kThreads / kWarpSize : kGroups * a.shape.cols);
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads, group = static_cast<int>(threadIdx.x) / kRowThreads;
  const std::int64_t cols = a.shape.cols;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kGroups + group) * kRowsInTurn;
  RowPack totals[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) totals[p][i] = 0.0f;
  }
#pragma unroll 1
  for (std::int64_t row = first; row < first + kRowsInTurn; ++row) {
    const bool is_row = row < a.shape.rows;
    const T* const x = a.x.data + (is_row ? a.shape.offset(row, a.x.stride, cols) : 0);
    const std::int64_t at = is_row ? a.shape.offset(row, a.d_y.stride, cols) : 0;
    const T* const d_y = a.d_y.data + at;
    T* const d_x = a.d_x.data + at;
    const float factor = is_row ? a.rstd.data[a.shape.offset(row, a.rstd.stride, 1)] : 0.0f;
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t col = static_cast<std::int64_t>(p * kRowThreads + lane) * kRowPack;
      if (!is_row || col >= cols) continue;
      const RowPack value = load_row(x, col, cols, a.is_whole), gradient = load_row(d_y, col, cols, a.is_whole);
      const RowPack weight = load_row(a.weight, col, cols, a.is_whole);
#pragma unroll
      for (int i = 0; i < kRowPack; ++i) dot += value[i] * weight[i] * gradient[i];
    }
    const float projection = row_sum<kRowThreads>(dot, scratch) / static_cast<float>(cols) * factor * factor;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t col = static_cast<std::int64_t>(p * kRowThreads + lane) * kRowPack;
      if (!is_row || col >= cols) continue;
      const RowPack value = load_row(x, col, cols, a.is_whole), gradient = load_row(d_y, col, cols, a.is_whole);
      RowPack weight = load_row(a.weight, col, cols, a.is_whole);
#pragma unroll
      for (int i = 0; i < kRowPack; ++i) {
        totals[p][i] += gradient[i] * value[i] * factor;
        weight[i] = (gradient[i] * weight[i] - value[i] * projection) * factor;
      }
      if (a.accumulates) {
        const RowPack before = load_row(d_x, col, cols, a.is_whole);
#pragma unroll
        for (int i = 0; i < kRowPack; ++i) weight[i] += before[i];
      }
      store_row(d_x, col, cols, a.is_whole, weight);
    }
  }
  float* const sums = kGroups == 1 ? a.partials.row(blockIdx.x).data : scratch + group * cols;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const std::int64_t col = static_cast<std::int64_t>(p * kRowThreads + lane) * kRowPack;
    if (col < cols) store_row(sums, col, cols, a.is_whole, totals[p]);
  }
  if constexpr (kGroups > 1) {
    __syncthreads();
    for (std::int64_t col = threadIdx.x; col < cols; col += kThreads) {
      float sum = 0.0f;
      for (int other = 0; other < kGroups; ++other) sum += scratch[other * cols + col];
      a.partials(blockIdx.x, col) = sum;
    }
  }
}

/// start(threads of a row, packs of a thread) with the smallest pair that holds a row.
template <class Start>
void for_width(const char* name, std::int64_t cols, const Start& start) {
  using std::integral_constant;
  constexpr std::int64_t kWidest = std::int64_t{kThreads} * 8 * kRowPack;
  REPRISE_CUDA_CHECK(cols <= kWidest, name, ": rows of ", cols, " elements; at most ", kWidest, " on a GPU");
  if (cols <= 16 * kRowPack) {
    start(integral_constant<int, 16>(), integral_constant<int, 1>());
  } else if (cols <= 32 * 4 * kRowPack) {
    start(integral_constant<int, 32>(), integral_constant<int, 4>());
  } else if (cols <= kThreads * 2 * kRowPack) {
    start(integral_constant<int, kThreads>(), integral_constant<int, 2>());
  } else if (cols <= kThreads * 4 * kRowPack) {
    start(integral_constant<int, kThreads>(), integral_constant<int, 4>());
  } else {
    start(integral_constant<int, kThreads>(), integral_constant<int, 8>());
  }
}

template <class T>
void start_norm(const CudaStream& stream, const char* name, NormArguments<T> arguments) {
  const std::int64_t cols = arguments.shape.cols;
  arguments.is_whole = cols % kRowPack == 0 && has_whole_packs(arguments.x.data, arguments.x.stride) &&
                       has_whole_packs(arguments.branch, 0) && has_whole_packs(arguments.sum, 0) &&
                       has_whole_packs(arguments.weight, 0) && has_whole_packs(arguments.y.data, arguments.y.stride);
  for_width(name, cols, [&](auto row_threads, auto packs) {
    const unsigned blocks = blocks_for(arguments.shape.rows, kThreads / row_threads);
    launch(stream, {name, blocks, kThreads, kBlockReduceBytes<float, kThreads>}, rms_norm_kernel<T, row_threads, packs>,
           arguments);
  });
}

template <class T>
void start_backward(const CudaStream& stream, Arena& arena, const char* name, NormBackwardArguments<T> arguments,
                    VectorView<float> d_weight) {
  const Arena::Scope scope(arena);
  const std::int64_t cols = arguments.shape.cols;
  for_width(name, cols, [&](auto row_threads, auto packs) {
    constexpr int kGroups = kThreads / row_threads;
    const unsigned blocks = blocks_for(arguments.shape.rows, std::int64_t{kGroups} * kRowsInTurn);
    arguments.partials = arena.matrix<float>(blocks, cols, "partial sums of a norm's gradient");
    arguments.is_whole = cols % kRowPack == 0 && has_whole_packs(arguments.x.data, arguments.x.stride) &&
                         has_whole_packs(arguments.weight, 0) &&
                         has_whole_packs(arguments.d_y.data, arguments.d_y.stride) &&
                         has_whole_packs(arguments.d_x.data, arguments.d_x.stride);
    const std::size_t bytes = kGroups == 1 ? kBlockReduceBytes<float, kThreads> : shared_bytes<float>(kGroups * cols);
    launch(stream, {name, blocks, kThreads, bytes}, rms_norm_backward_kernel<T, row_threads, packs>, arguments);
  });
  add_partial_rows(stream, arguments.partials, d_weight);
}

}  // namespace

template <class T>
void rms_norm(const CudaStream& stream, MatrixView<const T> x, VectorView<const T> weight, float eps, MatrixView<T> y,
              VectorView<float> rstd) {
  REPRISE_CUDA_CHECK(weight.size == x.cols && y.rows == x.rows && y.cols == x.cols && rstd.size == x.rows,
                     "rms_norm of [", x.rows, ", ", x.cols, "] with weight ", weight.size, ", output [", y.rows, ", ",
                     y.cols, "], rstd ", rstd.size);
  start_norm<T>(stream, "rms_norm",
                {{x.rows, x.cols, 1, 0},
                 {x.data, x.cols},
                 nullptr,
                 nullptr,
                 weight.data,
                 eps,
                 {y.data, y.cols},
                 {rstd.data, 1},
                 false});
}

template <class T>
void add_rms_norm(const CudaStream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
                  VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd) {
  REPRISE_CUDA_CHECK(weight.size == x.cols && y.rows == x.rows && y.cols == x.cols && rstd.size == x.rows &&
                         branch.size() == x.size() && sum.size() == x.size(),
                     "add_rms_norm of [", x.rows, ", ", x.cols, "] and ", branch.size(), " elements into ", sum.size(),
                     " with weight ", weight.size, ", output [", y.rows, ", ", y.cols, "], rstd ", rstd.size);
  start_norm<T>(stream, "add_rms_norm",
                {{x.rows, x.cols, 1, 0},
                 {x.data, x.cols},
                 branch.data,
                 sum.data,
                 weight.data,
                 eps,
                 {y.data, y.cols},
                 {rstd.data, 1},
                 false});
}

template <class T>
void accumulate_rms_norm_backward(const CudaStream& stream, Arena& arena, MatrixView<const T> x,
                                  VectorView<const T> weight, VectorView<const float> rstd, MatrixView<const T> d_y,
                                  MatrixView<T> d_x, VectorView<float> d_weight) {
  REPRISE_CUDA_CHECK(d_y.size() == x.size() && d_x.size() == x.size() && d_weight.size == x.cols && rstd.size == x.rows,
                     "rms_norm backward of [", x.rows, ", ", x.cols, "]: d_y ", d_y.size(), ", d_x ", d_x.size(),
                     ", d_weight ", d_weight.size, ", rstd ", rstd.size);
  start_backward<T>(stream, arena, "rms_norm_backward",
                    {{x.rows, x.cols, 1, 0},
                     {x.data, x.cols},
                     weight.data,
                     {rstd.data, 1},
                     {d_y.data, x.cols},
                     {d_x.data, x.cols},
                     true,
                     {},
                     false},
                    d_weight);
}

template <class T>
void head_rms_norm(const CudaStream& stream, MatrixView<const T> x, std::int64_t first_head, std::int64_t heads,
                   VectorView<const T> weight, float eps, MatrixView<T> y, MatrixView<float> rstd) {
  start_norm<T>(stream, "head_rms_norm",
                {{x.rows * heads, weight.size, heads, first_head},
                 {x.data, x.cols},
                 nullptr,
                 nullptr,
                 weight.data,
                 eps,
                 {y.data, y.cols},
                 {rstd.data, rstd.cols},
                 false});
}

template <class T>
void head_rms_norm_backward(const CudaStream& stream, Arena& arena, MatrixView<const T> x, std::int64_t first_head,
                            std::int64_t heads, VectorView<const T> weight, MatrixView<const float> rstd,
                            MatrixView<T> d_y, VectorView<float> d_weight) {
  start_backward<T>(stream, arena, "head_rms_norm_backward",
                    {{x.rows * heads, weight.size, heads, first_head},
                     {x.data, x.cols},
                     weight.data,
                     {rstd.data, rstd.cols},
                     {d_y.data, d_y.cols},
                     {d_y.data, d_y.cols},
                     false,
                     {},
                     false},
                    d_weight);
}

#define REPRISE_INSTANTIATE(T)                                                                                        \
  template void rms_norm<T>(const CudaStream&, MatrixView<const T>, VectorView<const T>, float, MatrixView<T>,        \
                            VectorView<float>);                                                                       \
  template void add_rms_norm<T>(const CudaStream&, MatrixView<const T>, MatrixView<const T>, MatrixView<T>,           \
                                VectorView<const T>, float, MatrixView<T>, VectorView<float>);                        \
  template void accumulate_rms_norm_backward<T>(const CudaStream&, Arena&, MatrixView<const T>, VectorView<const T>,  \
                                                VectorView<const float>, MatrixView<const T>, MatrixView<T>,          \
                                                VectorView<float>);                                                   \
  template void head_rms_norm<T>(const CudaStream&, MatrixView<const T>, std::int64_t, std::int64_t,                  \
                                 VectorView<const T>, float, MatrixView<T>, MatrixView<float>);                       \
  template void head_rms_norm_backward<T>(const CudaStream&, Arena&, MatrixView<const T>, std::int64_t, std::int64_t, \
                                          VectorView<const T>, MatrixView<const float>, MatrixView<T>,                \
                                          VectorView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
