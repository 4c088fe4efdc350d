#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "optimizer/copy_ranges.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 256;

/// One block per range. Packed places have no alignment, so elements move one by one, neighbours by neighbours.
template <bool kPacks>
__global__ void __launch_bounds__(kThreads)
    copy_ranges_kernel(VectorView<const CopyRange> ranges, VectorView<const float> from, VectorView<float> to) {
  const CopyRange range = ranges[blockIdx.x];
  const float* const source = from.data + (kPacks ? range.flat : range.packed);
  float* const target = to.data + (kPacks ? range.packed : range.flat);
  const int size = static_cast<int>(range.size);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) target[i] = source[i];
}

}  // namespace

void pack_ranges(const CudaStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> flat,
                 VectorView<float> packed) {
  launch(stream, {"pack_ranges", blocks_for(ranges.size, 1), kThreads}, copy_ranges_kernel<true>, ranges, flat, packed);
}

void unpack_ranges(const CudaStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> packed,
                   VectorView<float> flat) {
  launch(stream, {"unpack_ranges", blocks_for(ranges.size, 1), kThreads}, copy_ranges_kernel<false>, ranges, packed,
         flat);
}

}  // namespace reprise
