#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <utility>

#include "core/cuda/check.hpp"
#include "core/cuda/queue_state.hpp"
#include "core/cuda_stream.hpp"
#include "core/error.hpp"

namespace reprise {

namespace detail {

void cuda_failed(const char* file, int line, const char* call, cudaError_t error) {
  throw Error(ErrorKind::kInternal,
              fmt::format("{}:{}: {}: {} ({})", file, line, call, cudaGetErrorString(error), cudaGetErrorName(error)));
}

void launch_failed(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, cudaError_t error) {
  throw Error(
      ErrorKind::kInternal,
      fmt::format("kernel '{}' could not be launched with a grid of {} x {} x {} blocks of {} x {} x {} threads "
                  "and {} bytes of shared memory: {} ({})",
                  kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, cudaGetErrorString(error),
                  cudaGetErrorName(error)));
}

}  // namespace detail

namespace {

/// Freed memory stays with the process: a step allocates nothing from the driver.
void keep_freed_memory(int device) {
  cudaMemPool_t pool = nullptr;
  REPRISE_CUDA(cudaDeviceGetDefaultMemPool(&pool, device));
  std::uint64_t threshold = std::numeric_limits<std::uint64_t>::max();
  REPRISE_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
}

}  // namespace

void CudaStream::synchronize() const {
  REPRISE_CUDA(cudaStreamSynchronize(handle));
}

CudaQueue::CudaQueue(int device, Priority priority) : state_(std::make_unique<CudaQueueState>()) {
  const int devices = num_cuda_devices();
  require(device >= 0 && device < devices, ErrorKind::kUsage, "there is no GPU {}: this process sees {}", device,
          devices);
  state_->device = device;
  use_on_this_thread();
  keep_freed_memory(device);
  int least = 0, greatest = 0;
  REPRISE_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  REPRISE_CUDA(cudaStreamCreateWithPriority(state_->stream.out(), cudaStreamNonBlocking,
                                            priority == Priority::kHigh ? greatest : least));
}

CudaQueue::~CudaQueue() = default;

CudaStream CudaQueue::stream() const {
  return {state_->stream.get(), state_->device, state_.get()};
}

void CudaQueue::use_on_this_thread() const {
  REPRISE_CUDA(cudaSetDevice(state_->device));
}

CudaEvent::CudaEvent() {
  REPRISE_CUDA(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming));
}

CudaEvent::~CudaEvent() {
  if (handle_ != nullptr) static_cast<void>(cudaEventDestroy(handle_));
}

CudaEvent::CudaEvent(CudaEvent&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

CudaEvent& CudaEvent::operator=(CudaEvent&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

void CudaEvent::record(const CudaStream& stream) {
  REPRISE_CUDA(cudaEventRecord(handle_, stream.handle));
}

void CudaEvent::make_wait(const CudaStream& stream) const {
  REPRISE_CUDA(cudaStreamWaitEvent(stream.handle, handle_, 0));
}

void CudaEvent::synchronize() const {
  REPRISE_CUDA(cudaEventSynchronize(handle_));
}

bool CudaEvent::is_done() const {
  const cudaError_t error = cudaEventQuery(handle_);
  if (error == cudaErrorNotReady) return false;
  REPRISE_CUDA(error);
  return true;
}

int num_cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // no driver is an ordinary answer
    return 0;
  }
  return count;
}

CudaDeviceInfo cuda_device_info(int device) {
  cudaDeviceProp properties{};
  REPRISE_CUDA(cudaGetDeviceProperties(&properties, device));
  CudaDeviceInfo info;
  info.name = properties.name;
  info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.l2_bytes = properties.l2CacheSize;
  info.multiprocessors = properties.multiProcessorCount;
  info.capability = 10 * properties.major + properties.minor;
  return info;
}

}  // namespace reprise
