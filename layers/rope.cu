#include "core/cuda/launch.hpp"
#include "layers/rope.hpp"
#include "layers/row_packs.cuh"

// Rotation reads and writes every element of the heads once, 4 bytes in bfloat16; a token's row of the table is read by
// all heads, from L1.

namespace reprise {

namespace {

constexpr int kThreads = 128;
constexpr int kMaxFrequencies = 512;

struct Frequencies {
  float values[kMaxFrequencies];
};

/// One thread per angle. float64 cosines, as on the CPU: angles reach 10^5.
__global__ void __launch_bounds__(kThreads)
    rotary_table_kernel(Frequencies frequencies, VectorView<const std::int32_t> positions, MatrixView<float> table) {
  const std::int64_t half = table.cols / 2, index = global_thread_index();
  if (index >= positions.size * half) return;
  const std::int64_t p = index / half, i = index % half;
  const auto angle = static_cast<double>(static_cast<float>(positions[p]) * frequencies.values[i]);
  table(p, i) = static_cast<float>(cos(angle));
  table(p, i + half) = static_cast<float>(sin(angle));
}

/// A block for a token, whose threads share out (head, pack of the first half).
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotate_heads_kernel(MatrixView<const float> table, VectorView<const std::int32_t> table_rows, int heads, float sign,
                        MatrixView<T> x, bool is_whole) {
  const int head_dim = static_cast<int>(table.cols), half = head_dim / 2, packs = (half + kRowPack - 1) / kRowPack;
  const float* const cosines = table.row(table_rows[blockIdx.x]).data;
  const float* const sines = cosines + half;
  T* const row = x.row(blockIdx.x).data;
  for (int item = static_cast<int>(threadIdx.x); item < heads * packs; item += kThreads) {
    const int head = item / packs, col = item % packs * kRowPack;
    T* const first = row + static_cast<std::int64_t>(head) * head_dim;
    T* const second = first + half;
    RowPack a = load_row(first, col, half, is_whole), b = load_row(second, col, half, is_whole);
    const RowPack cosine = load_row(cosines, col, half, is_whole), sine = load_row(sines, col, half, is_whole);
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) {
      const float s = sine[i] * sign, turned = a[i] * cosine[i] - b[i] * s;
      b[i] = b[i] * cosine[i] + a[i] * s;
      a[i] = turned;
    }
    store_row(first, col, half, is_whole, a);
    store_row(second, col, half, is_whole, b);
  }
}

}  // namespace

void rotary_table(const CudaStream& stream, VectorView<const float> frequencies,
                  VectorView<const std::int32_t> positions, MatrixView<float> table) {
  REPRISE_CUDA_CHECK(table.rows == positions.size && table.cols == 2 * frequencies.size, "rotary_table [", table.rows,
                     ", ", table.cols, "] of ", positions.size, " positions, ", frequencies.size, " frequencies");
  REPRISE_CUDA_CHECK(frequencies.size <= kMaxFrequencies, "rotary_table: heads of ", 2 * frequencies.size,
                     " elements; at most ", 2 * kMaxFrequencies, " on a GPU");
  Frequencies values{};
  for (std::int64_t i = 0; i < frequencies.size; ++i) values.values[i] = frequencies[i];
  launch(stream, {"rotary_table", blocks_for(positions.size * frequencies.size, kThreads), kThreads},
         rotary_table_kernel, values, positions, table);
}

template <class T>
void rotate_heads(const CudaStream& stream, MatrixView<const float> table, VectorView<const std::int32_t> table_rows,
                  std::int64_t heads, bool inverse, MatrixView<T> x) {
  REPRISE_CUDA_CHECK(table_rows.size == x.rows && heads * table.cols <= x.cols, "rotate_heads: ", table_rows.size,
                     " table rows, x [", x.rows, ", ", x.cols, "], ", heads, " heads of ", table.cols);
  const bool is_whole =
      table.cols % (2 * kRowPack) == 0 && has_whole_packs(x.data, x.cols) && has_whole_packs(table.data, table.cols);
  launch(stream, {"rotate_heads", blocks_for(x.rows, 1), kThreads}, rotate_heads_kernel<T>, table, table_rows,
         static_cast<int>(heads), inverse ? -1.0f : 1.0f, x, is_whole);
}

template void rotate_heads<float>(const CudaStream&, MatrixView<const float>, VectorView<const std::int32_t>,
                                  std::int64_t, bool, MatrixView<float>);
template void rotate_heads<BFloat16>(const CudaStream&, MatrixView<const float>, VectorView<const std::int32_t>,
                                     std::int64_t, bool, MatrixView<BFloat16>);

}  // namespace reprise
