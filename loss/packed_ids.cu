#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "loss/packed_ids.hpp"

namespace reprise {

namespace {

constexpr int kThreads = 128;

/// One block per tile.
__global__ void __launch_bounds__(kThreads)
    unpack_ids_kernel(PackedIds packed, VectorView<const LocalTile> tiles, VectorView<std::int32_t> ids) {
  const LocalTile tile = tiles[blockIdx.x];
  for (std::int64_t i = threadIdx.x; i < tile.num_ids(); i += kThreads) {
    std::int32_t high = 0;
    for (std::int64_t h = 0; h < packed.steps.cols; ++h) high += packed.steps(blockIdx.x, h) <= i ? 1 : 0;
    ids[tile.id_begin + i] = high << 16 | packed.low[tile.id_begin + i];
  }
}

}  // namespace

void unpack_ids(const CudaStream& stream, const PackedIds& packed, VectorView<const LocalTile> tiles,
                VectorView<std::int32_t> ids) {
  REPRISE_CUDA_CHECK(packed.low.size == ids.size && packed.steps.rows == tiles.size, "unpack_ids: ", packed.low.size,
                     " packed ids of ", packed.steps.rows, " tiles for ", ids.size, " ids of ", tiles.size);
  launch(stream, {"unpack_ids", blocks_for(tiles.size, 1), kThreads}, unpack_ids_kernel, packed, tiles, ids);
}

}  // namespace reprise
