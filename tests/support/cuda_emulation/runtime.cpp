#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/cuda_emulation/block.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/nvtx_ranges.hpp"
#include "tests/support/cuda_emulation/queue.hpp"
#include "tests/support/cuda_emulation/work_log.hpp"

namespace {

using namespace cuda_emulation;

constexpr std::size_t kDefaultSharedBytes = std::size_t{48} << 10, kMostSharedBytes = std::size_t{227} << 10;
constexpr std::size_t kDeviceBytes = std::size_t{16} << 30;
constexpr int kVersion = 13000;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct State {
  std::mutex mutex;
  std::set<CUstream_st*> streams;
  std::map<const void*, std::size_t> shared_limits;  // by kernel
};

State& state() {
  static auto* const instance = new State;
  return *instance;
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The host waits for a stream to come so far.
void wait(cudaStream_t stream, std::uint64_t position) {
  if (!is_complete(stream, position)) note_host_wait();
  complete(stream, position);
}

bool is_device(int device) {
  return device >= 0 && device < settings().num_devices;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = settings().num_devices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(kMostSharedBytes); break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default: return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device %d", device);
  properties->totalGlobalMem = kDeviceBytes;
  properties->multiProcessorCount = 4;
  properties->major = 9;
  properties->sharedMemPerBlockOptin = kMostSharedBytes;
  properties->l2CacheSize = 1 << 20;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  std::snprintf(id, static_cast<std::size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device) & 0xffU);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  std::vector<CUstream_st*> streams;
  {
    const std::lock_guard lock(state().mutex);
    streams.assign(state().streams.begin(), state().streams.end());
  }
  for (CUstream_st* stream : streams) {
    if (stream->device == current_device) wait(stream, position_of(stream));
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  prepare_host_thread();
  auto* const made = new CUstream_st;
  made->device = current_device;
  made->is_late = settings().late_streams;
  const std::lock_guard lock(state().mutex);
  state().streams.insert(made);
  *stream = made;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard lock(state().mutex);
    if (state().streams.erase(stream) == 0) return result(cudaErrorInvalidResourceHandle);
  }
  complete(stream, position_of(stream));
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  wait(stream, position_of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  advance(stream);
  return is_complete(stream, position_of(stream)) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream != nullptr && event->stream != stream) note_work(stream, "wait");
  enqueue_wait(stream, *event);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  enqueue(stream, [function, data] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  enqueue(stream, [] {});
  event->stream = stream;
  event->position = position_of(stream);
  event->time_ms = now_ms();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream != nullptr) wait(event->stream, event->position);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream == nullptr) return cudaSuccess;
  if (!is_complete(event->stream, event->position)) advance(event->stream);
  return is_complete(event->stream, event->position) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  if (begin->stream == nullptr || end->stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  *ms = static_cast<float>(end->time_ms - begin->time_ms);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t stream) {
  if (stream == nullptr) throw Fault("memory of the default stream: every call names a stream of its own");
  *pointer = bytes == 0 ? nullptr : allocate_device(bytes);
  return *pointer == nullptr && bytes > 0 ? result(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (pointer != nullptr) {
    enqueue(stream, [pointer] { free_device(pointer); });
  }
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  *pointer = allocate_pinned(bytes);
  return *pointer == nullptr ? result(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  if (pointer != nullptr) free_pinned(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = kDeviceBytes;
  *free = kDeviceBytes - device_bytes_in_use();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  if (!is_device(device)) return result(cudaErrorInvalidDevice);
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  const bool is_peak = attribute == cudaMemPoolAttrUsedMemHigh;
  *static_cast<std::uint64_t*>(value) = is_peak ? device_bytes_peak() : std::numeric_limits<std::uint64_t>::max();
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  check_device_range(pointer, bytes, "memset");
  enqueue(stream, [=] {
    if (bytes > 0) set_bytes(real_address(pointer), value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool to_device = is_device_address(to), from_device = is_device_address(from);
  if (bytes == 0) return cudaSuccess;
  const bool fits = kind == cudaMemcpyDefault ||
                    (to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
                     from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
  if (!fits) throw Fault("a copy whose direction does not fit its addresses");
  if (to_device) check_device_range(to, bytes, "copy");
  if (from_device) check_device_range(from, bytes, "copy");
  if (to_device && !from_device) {
    if (is_pinned(from, bytes)) {
      enqueue(stream, [=] {
        std::memcpy(real_address(to), from, bytes);
        translate_live_addresses(real_address(to), bytes);
      });
    } else {  // the runtime takes pageable memory away before it returns
      note_host_wait();
      std::vector<char> taken(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
      enqueue(stream, [=, taken = std::move(taken)] {
        std::memcpy(real_address(to), taken.data(), bytes);
        translate_live_addresses(real_address(to), bytes);
      });
    }
    return cudaSuccess;
  }
  enqueue(stream, [=] { std::memmove(real_address(to), real_address(from), bytes); });
  if (!to_device && !is_pinned(to, bytes)) {  // pageable: returns when it is there
    note_host_wait();
    complete(stream, position_of(stream));
  }
  return cudaSuccess;
}

namespace cuda_emulation {

cudaError_t set_function_attribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<std::size_t>(value) > kMostSharedBytes) return result(cudaErrorInvalidValue);
  const std::lock_guard lock(state().mutex);
  state().shared_limits[function] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, std::function<void()> kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  constexpr unsigned kMostBlocks = 2147483647, kMostBlocksAcross = 65535, kMostThreads = 1024, kMostThreadsDeep = 64;
  std::size_t limit = kDefaultSharedBytes;
  {
    const std::lock_guard lock(state().mutex);
    const auto found = state().shared_limits.find(function);
    if (found != state().shared_limits.end() && found->second > limit) limit = found->second;
  }
  const bool is_legal = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= kMostBlocks &&
                        grid.y <= kMostBlocksAcross && grid.z <= kMostBlocksAcross && block.x >= 1 && block.y >= 1 &&
                        block.z >= 1 && block.z <= kMostThreadsDeep &&
                        std::uint64_t{block.x} * block.y * block.z <= kMostThreads && config.dynamicSmemBytes <= limit;
  if (!is_legal) return result(cudaErrorInvalidConfiguration);
  LaunchState state;
  state.name = innermost_range();
  state.grid = grid;
  state.block = block;
  state.shared_bytes = config.dynamicSmemBytes;
  note_work(config.stream, state.name);
  enqueue(config.stream,
          [state = std::move(state), kernel = std::move(kernel)] { run_grid(state, kernel, settings()); });
  return cudaSuccess;
}

}  // namespace cuda_emulation
