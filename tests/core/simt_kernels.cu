#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "tests/core/simt_kernels.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 1024;

__global__ void tiny_product_kernel(MatrixView<const BFloat16> a, MatrixView<const BFloat16> b_transposed,
                                    MatrixView<float> c, bool loads_by_matrix) {
  SharedMemory shared;
  BFloat16* const rows_of_a = shared.take<BFloat16>(16 * 16);
  BFloat16* const rows_of_b = shared.take<BFloat16>(8 * 16);
  const int lane = lane_index(), group = lane / 4, pair = 2 * (lane % 4);
  for (int i = lane; i < 16 * 16; i += kWarpSize) rows_of_a[i] = a.data[i];
  for (int i = lane; i < 8 * 16; i += kWarpSize) rows_of_b[i] = b_transposed.data[i];
  __syncwarp();
  unsigned fragment_a[4], fragment_b[2];
  if (loads_by_matrix) {
    load_matrices<4, false>(fragment_a, rows_of_a + lane % 16 * 16 + lane / 16 * 8);
    load_matrices<2, false>(fragment_b, rows_of_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    const auto two = [](const BFloat16* at) { return pack_bfloat16(to_float(at[0]), to_float(at[1])); };
    for (int i = 0; i < 4; ++i) fragment_a[i] = two(rows_of_a + (group + i % 2 * 8) * 16 + pair + i / 2 * 8);
    for (int i = 0; i < 2; ++i) fragment_b[i] = two(rows_of_b + group * 16 + pair + i * 8);
  }
  float d[4] = {};
  mma_m16n8k16(d, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c(group + i / 2 * 8, pair + i % 2) = d[i];
}

__global__ void collectives_kernel(VectorView<std::int32_t> out) {
  const int lane = lane_index();
  const auto put = [&](int which, int value) { out[which * kWarpSize + lane] = value; };
  put(0, __shfl_sync(kAllLanes, lane, 5));
  put(1, __shfl_xor_sync(kAllLanes, lane, 3));
  put(2, __shfl_up_sync(kAllLanes, lane, 4));
  put(3, __shfl_down_sync(kAllLanes, lane, 4, 16));
  put(4, static_cast<int>(__ballot_sync(kAllLanes, lane % 3 == 0)));
  put(5, __any_sync(kAllLanes, lane == 7));
  put(6, __all_sync(kAllLanes, lane < 31));
  put(7, __reduce_add_sync(kAllLanes, lane));
  put(8, lane < 16 ? __reduce_max_sync(0x0000ffffU, lane) : __reduce_max_sync(0xffff0000U, lane));
  put(9, __syncthreads_count(lane % 2));
  put(10, __syncthreads_or(lane == 40));
}

__global__ void named_barriers_kernel(VectorView<std::int32_t> out) {
  SharedMemory shared;
  auto* const values = shared.take<std::int32_t>(2 * kWarpSize);
  constexpr int kFull = 1, kEmpty = 2;
  for (int round = 0; round < 2; ++round) {
    if (warp_index() == 0) {
      if (round > 0) barrier_sync(kEmpty, 2 * kWarpSize);
      values[lane_index()] = round * kWarpSize + lane_index();
      barrier_sync(kFull, 2 * kWarpSize);
    } else {
      barrier_sync(kFull, 2 * kWarpSize);
      out[round * kWarpSize + lane_index()] = 2 * values[lane_index()];
      if (round == 0) barrier_sync(kEmpty, 2 * kWarpSize);
    }
  }
}

__global__ void __launch_bounds__(kThreads) block_reductions_kernel(VectorView<const float> x, VectorView<float> out) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kThreads / kWarpSize);
  const float value = x[global_thread_index()];
  out[global_thread_index()] = block_sum<kThreads>(value, scratch);
  out[x.size + global_thread_index()] = block_max<kThreads>(value, scratch);
}

template <int kBytes>
__device__ void copy_part(const float* from, std::int64_t begin, std::int64_t valid, float* shared) {
  constexpr int kFloats = kBytes / 4;
  for (std::int64_t i = begin + lane_index() * kFloats; i < begin + kWarpSize; i += kWarpSize * kFloats) {
    copy_async<kBytes>(shared + i, from + i, i < valid);
  }
  commit_copies();
}

__global__ void copies_kernel(VectorView<const float> from, std::int64_t valid, VectorView<float> to) {
  SharedMemory shared;
  float* const values = shared.take<float>(3 * kWarpSize);
  copy_part<4>(from.data, 0, valid, values);
  copy_part<8>(from.data, kWarpSize, valid, values);
  copy_part<16>(from.data, 2 * kWarpSize, valid, values);
  wait_for_copies<2>();
  __syncwarp();
  to[lane_index()] = values[lane_index()];
  wait_for_copies<0>();
  __syncwarp();
  for (int i = kWarpSize + lane_index(); i < 3 * kWarpSize; i += kWarpSize) to[i] = values[i];
}

__global__ void transpose_tile_kernel(MatrixView<const BFloat16> from, MatrixView<BFloat16> to) {
  SharedMemory shared;
  BFloat16* const tile = shared.take<BFloat16>(64);
  for (int i = lane_index(); i < 64; i += kWarpSize) tile[i] = from.data[i];
  __syncwarp();
  unsigned words[1];
  load_matrices<1, true>(words, tile + lane_index() % 8 * 8);
  const int row = lane_index() / 4, col = 2 * (lane_index() % 4);
  to(row, col).bits = static_cast<std::uint16_t>(words[0]);
  to(row, col + 1).bits = static_cast<std::uint16_t>(words[0] >> 16);
}

}  // namespace

void tiny_product(const CudaStream& stream, MatrixView<const BFloat16> a, MatrixView<const BFloat16> b_transposed,
                  MatrixView<float> c, bool loads_by_matrix) {
  const std::size_t bytes = shared_bytes<BFloat16>(16 * 16) + shared_bytes<BFloat16>(8 * 16);
  launch(stream, {"tiny_product", 1, kWarpSize, bytes}, tiny_product_kernel, a, b_transposed, c, loads_by_matrix);
}

void collectives(const CudaStream& stream, VectorView<std::int32_t> out) {
  launch(stream, {"collectives", 1, kWarpSize}, collectives_kernel, out);
}
void named_barriers(const CudaStream& stream, VectorView<std::int32_t> out) {
  launch(stream, {"named_barriers", 1, 2 * kWarpSize, shared_bytes<std::int32_t>(2 * kWarpSize)}, named_barriers_kernel,
         out);
}
void block_reductions(const CudaStream& stream, VectorView<const float> x, VectorView<float> out) {
  launch(stream, {"block_reductions", blocks_for(x.size, kThreads), kThreads, kBlockReduceBytes<float, kThreads>},
         block_reductions_kernel, x, out);
}

void copies(const CudaStream& stream, VectorView<const float> from, std::int64_t valid, VectorView<float> to) {
  launch(stream, {"copies", 1, kWarpSize, shared_bytes<float>(3 * kWarpSize)}, copies_kernel, from, valid, to);
}

void transpose_tile(const CudaStream& stream, MatrixView<const BFloat16> from, MatrixView<BFloat16> to) {
  launch(stream, {"transpose_tile", 1, kWarpSize, shared_bytes<BFloat16>(64)}, transpose_tile_kernel, from, to);
}

}  // namespace reprise
