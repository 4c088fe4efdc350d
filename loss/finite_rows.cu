#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "loss/finite_rows.hpp"

// Reads every element once: T D sizeof(T) bytes, which the gather has just written and L2 mostly holds.

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarpSize;  // a warp takes a row

__device__ bool is_bad_value(float x) {
  return (__float_as_uint(x) & 0x7f800000u) == 0x7f800000u;
}
__device__ bool is_bad_value(BFloat16 x) {
  return (x.bits & 0x7f80u) == 0x7f80u;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    find_bad_rows_kernel(MatrixView<const T> x, VectorView<std::int32_t> is_bad, bool is_aligned) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kRowsPerBlock + warp_index();
  if (index >= x.rows) return;
  const T* const row = x.row(index).data;
  bool is_bad_row = false;
  if (is_aligned) {
    for (std::int64_t i = std::int64_t{lane_index()} * kPackSize<T>; i < x.cols; i += kWarpSize * kPackSize<T>) {
      const auto values = load_pack<kPackSize<T>>(row, i);
      for (int j = 0; j < kPackSize<T>; ++j) is_bad_row = is_bad_row || is_bad_value(values[j]);
    }
  } else {
    for (std::int64_t i = lane_index(); i < x.cols; i += kWarpSize) is_bad_row = is_bad_row || is_bad_value(row[i]);
  }
  const bool is_any_bad = __any_sync(kAllLanes, is_bad_row) != 0;
  if (lane_index() == 0) is_bad[index] = is_any_bad ? 1 : 0;
}

}  // namespace

template <class T>
void find_bad_rows(const CudaStream& stream, MatrixView<const T> x, VectorView<std::int32_t> is_bad) {
  REPRISE_CUDA_CHECK(is_bad.size == x.rows, "find_bad_rows: ", is_bad.size, " flags for ", x.rows, " rows");
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && x.cols % kPackSize<T> == 0;
  launch(stream, {"find_bad_rows", blocks_for(x.rows, kRowsPerBlock), kThreads}, find_bad_rows_kernel<T>, x, is_bad,
         is_aligned);
}

template void find_bad_rows(const CudaStream&, MatrixView<const float>, VectorView<std::int32_t>);
template void find_bad_rows(const CudaStream&, MatrixView<const BFloat16>, VectorView<std::int32_t>);

}  // namespace reprise
