#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "core/cuda/check.hpp"
#include "core/cuda_stream.hpp"
#include "core/trace.hpp"

namespace reprise {

/// How a kernel is launched. `name` stands in profiles, in errors and in the reports of the emulation.
struct LaunchShape {
  const char* name;
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory of a block
};

/// The number of blocks of `per_block` items that cover `items`; for one dimension of a grid.
inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  const std::int64_t blocks = (items + per_block - 1) / per_block;
  REPRISE_CUDA_CHECK(blocks >= 0 && blocks <= std::numeric_limits<std::int32_t>::max(), "a grid of ", blocks,
                     " blocks");
  return static_cast<unsigned>(blocks);
}

/// The one way to start a kernel: converts the arguments to the kernel's parameters, asks for large shared memory where
/// it is needed, checks the launch. A grid without blocks is nothing to do.
template <class... Parameters, class... Arguments>
void launch(const CudaStream& stream, const LaunchShape& shape, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  constexpr std::size_t kSharedBytesForAll = std::size_t{48} << 10;
  const TraceRange range(shape.name);
  if (shape.shared_bytes > kSharedBytesForAll) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) {
      detail::launch_failed(shape.name, shape.grid, shape.block, shape.shared_bytes, error);
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream.handle;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) {
    detail::launch_failed(shape.name, shape.grid, shape.block, shape.shared_bytes, error);
  }
}

}  // namespace reprise
