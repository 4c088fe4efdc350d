#include <cuda_runtime.h>

#include <exception>

#include "core/buffer.hpp"
#include "core/cuda/check.hpp"
#include "core/error.hpp"

namespace reprise::detail {

void* allocate_bytes(const CudaStream& stream, std::int64_t bytes, std::string_view what) {
  REPRISE_CHECK(bytes >= 0, "{} bytes for {}", bytes, what);
  if (bytes == 0) return nullptr;
  constexpr std::int64_t kAddressable = std::int64_t{1} << 48;
  void* pointer = nullptr;
  cudaError_t error = cudaErrorMemoryAllocation;
  if (bytes < kAddressable) error = cudaMallocAsync(&pointer, static_cast<std::size_t>(bytes), stream.handle);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // it is reported here and must not be found again later
    std::size_t free = 0, total = 0;
    REPRISE_CUDA(cudaMemGetInfo(&free, &total));
    throw OutOfMemory(
        fmt::format("out of memory on GPU {}: {} bytes ({:.2f} GiB) for {} could not be had, {:.2f} of {:.2f} GiB are "
                    "free; use more "
                    "ranks, a smaller micro-batch or recomputation",
                    stream.device, bytes, static_cast<double>(bytes) / 0x1.0p30, what,
                    static_cast<double>(free) / 0x1.0p30, static_cast<double>(total) / 0x1.0p30));
  }
  REPRISE_CUDA(error);
  REPRISE_CUDA(cudaMemsetAsync(pointer, 0, static_cast<std::size_t>(bytes), stream.handle));
  return pointer;
}

void free_bytes(const CudaStream& stream, void* pointer, std::int64_t) noexcept {
  if (pointer != nullptr) static_cast<void>(cudaFreeAsync(pointer, stream.handle));
}

void discard_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes) noexcept {
  if (bytes > 0) static_cast<void>(cudaMemsetAsync(pointer, 0, static_cast<std::size_t>(bytes), stream.handle));
}

}  // namespace reprise::detail
