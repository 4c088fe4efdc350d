#include <cuda_runtime.h>

#include "core/cuda/check.hpp"
#include "core/error.hpp"
#include "core/transfer.hpp"

namespace reprise::detail {

void* allocate_host_bytes(const CudaStream&, std::int64_t bytes, std::string_view what) {
  REPRISE_CHECK(bytes >= 0, "{} bytes for {}", bytes, what);
  if (bytes == 0) return nullptr;
  void* pointer = nullptr;
  const cudaError_t error = cudaMallocHost(&pointer, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw OutOfMemory(
        fmt::format("out of memory: {} bytes of page-locked host memory for {} could not be had; see "
                    "ulimit -l and the memory limit of the container",
                    bytes, what));
  }
  REPRISE_CUDA(error);
  return pointer;
}

void free_host_bytes(const CudaStream&, void* pointer, std::int64_t) noexcept {
  if (pointer != nullptr) static_cast<void>(cudaFreeHost(pointer));
}

void copy_bytes(const CudaStream& stream, const void* from, void* to, std::int64_t bytes, Direction direction) {
  if (bytes == 0) return;
  cudaMemcpyKind kind = cudaMemcpyDeviceToDevice;
  if (direction == Direction::kToDevice) kind = cudaMemcpyHostToDevice;
  if (direction == Direction::kToHost) kind = cudaMemcpyDeviceToHost;
  REPRISE_CUDA(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream.handle));
}

void zero_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes) {
  if (bytes > 0) REPRISE_CUDA(cudaMemsetAsync(pointer, 0, static_cast<std::size_t>(bytes), stream.handle));
}

void synchronize(const CudaStream& stream) {
  stream.synchronize();
}

}  // namespace reprise::detail
