#include "core/cuda/launch.hpp"
#include "layers/row_packs.cuh"
#include "layers/swiglu.hpp"

// Every element is read and written once: forward 6 bytes per output element in bfloat16, backward 10.

namespace reprise {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlockCols = std::int64_t{kThreads} * kRowPack;

/// 0 where the exponential overflows.
__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// Blocks: a row in x, kBlockCols of its columns in y.

template <class T>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(MatrixView<const T> gate_up, MatrixView<T> y, bool is_whole) {
  const std::int64_t ffn = y.cols, col = blockIdx.y * kBlockCols + static_cast<std::int64_t>(threadIdx.x) * kRowPack;
  if (col >= ffn) return;
  const T* const row = gate_up.row(blockIdx.x).data;
  const RowPack gate = load_row(row, col, ffn, is_whole);
  RowPack values = load_row(row + ffn, col, ffn, is_whole);
#pragma unroll
  for (int i = 0; i < kRowPack; ++i) values[i] *= gate[i] * sigmoid(gate[i]);
  store_row(y.row(blockIdx.x).data, col, ffn, is_whole, values);
}

template <class T>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(MatrixView<const T> gate_up, MatrixView<const T> d_y,
                                                                   MatrixView<T> d_gate_up, bool is_whole) {
  const std::int64_t ffn = d_y.cols, col = blockIdx.y * kBlockCols + static_cast<std::int64_t>(threadIdx.x) * kRowPack;
  if (col >= ffn) return;
  const T* const row = gate_up.row(blockIdx.x).data;
  RowPack gate = load_row(row, col, ffn, is_whole), up = load_row(row + ffn, col, ffn, is_whole);
  const RowPack gradient = load_row(d_y.row(blockIdx.x).data, col, ffn, is_whole);
#pragma unroll
  for (int i = 0; i < kRowPack; ++i) {
    const float g = gate[i], s = sigmoid(g);
    gate[i] = gradient[i] * up[i] * s * (1.0f + g * (1.0f - s));
    up[i] = gradient[i] * g * s;
  }
  T* const out = d_gate_up.row(blockIdx.x).data;
  store_row(out, col, ffn, is_whole, gate);
  store_row(out + ffn, col, ffn, is_whole, up);
}

}  // namespace

template <class T>
void swiglu(const CudaStream& stream, MatrixView<const T> gate_up, MatrixView<T> y) {
  REPRISE_CUDA_CHECK(gate_up.rows == y.rows && gate_up.cols == 2 * y.cols, "swiglu: gate_up [", gate_up.rows, ", ",
                     gate_up.cols, "], y [", y.rows, ", ", y.cols, "]");
  const dim3 grid(blocks_for(y.rows, 1), blocks_for(y.cols, kBlockCols));
  const bool is_whole = has_whole_packs(gate_up.data, y.cols) && has_whole_packs(y.data, y.cols);
  launch(stream, {"swiglu", grid, kThreads}, swiglu_kernel<T>, gate_up, y, is_whole);
}

template <class T>
void swiglu_backward(const CudaStream& stream, MatrixView<const T> gate_up, MatrixView<const T> d_y,
                     MatrixView<T> d_gate_up) {
  REPRISE_CUDA_CHECK(gate_up.rows == d_y.rows && gate_up.cols == 2 * d_y.cols && d_gate_up.size() == gate_up.size(),
                     "swiglu_backward: gate_up [", gate_up.rows, ", ", gate_up.cols, "], d_y [", d_y.rows, ", ",
                     d_y.cols, "], d_gate_up ", d_gate_up.size());
  const dim3 grid(blocks_for(d_y.rows, 1), blocks_for(d_y.cols, kBlockCols));
  const bool is_whole = has_whole_packs(gate_up.data, d_y.cols) && has_whole_packs(d_y.data, d_y.cols) &&
                        has_whole_packs(d_gate_up.data, d_y.cols);
  launch(stream, {"swiglu_backward", grid, kThreads}, swiglu_backward_kernel<T>, gate_up, d_y, d_gate_up, is_whole);
}

template void swiglu<float>(const CudaStream&, MatrixView<const float>, MatrixView<float>);
template void swiglu<BFloat16>(const CudaStream&, MatrixView<const BFloat16>, MatrixView<BFloat16>);
template void swiglu_backward<float>(const CudaStream&, MatrixView<const float>, MatrixView<const float>,
                                     MatrixView<float>);
template void swiglu_backward<BFloat16>(const CudaStream&, MatrixView<const BFloat16>, MatrixView<const BFloat16>,
                                        MatrixView<BFloat16>);

}  // namespace reprise
