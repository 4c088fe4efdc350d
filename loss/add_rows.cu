#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "loss/add_rows.hpp"

// Moves 12 bytes an element: two reads and a write.

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = kPackSize<float>;

__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(MatrixView<const float> from, VectorView<const std::int32_t> index, MatrixView<float> to,
                    bool is_aligned) {
  const std::int64_t row = index[blockIdx.x];
  device_check(row >= 0 && row < to.rows, "an index lies outside the matrix");
  const float* const source = from.row(blockIdx.x).data;
  float* const target = to.row(row).data;
  if (is_aligned) {
    for (std::int64_t i = std::int64_t{threadIdx.x} * kPack; i < from.cols; i += kThreads * kPack) {
      const auto addend = load_pack<kPack>(source, i);
      auto sum = load_pack<kPack>(target, i);
      for (int j = 0; j < kPack; ++j) sum[j] += addend[j];
      store_pack(target, i, sum);
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < from.cols; i += kThreads) target[i] += source[i];
  }
}

}  // namespace

void add_rows(const CudaStream& stream, MatrixView<const float> from, VectorView<const std::int32_t> index,
              MatrixView<float> to) {
  REPRISE_CUDA_CHECK(from.rows == index.size && to.cols == from.cols, "add_rows: ", index.size, " indices, [",
                     from.rows, ", ", from.cols, "] to [", to.rows, ", ", to.cols, "]");
  const auto is_aligned_at = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  const bool is_aligned = from.cols % kPack == 0 && is_aligned_at(from.data) && is_aligned_at(to.data);
  launch(stream, {"add_rows", blocks_for(index.size, 1), kThreads}, add_rows_kernel, from, index, to, is_aligned);
}

}  // namespace reprise
