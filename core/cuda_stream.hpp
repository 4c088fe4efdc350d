#pragma once

#include <cstdint>
#include <memory>
#include <string>

struct CUstream_st;
struct CUevent_st;

namespace reprise {

class CudaQueueState;

/// Where CUDA kernels run: the queue of one GPU. Passed by value like CpuStream, not owned (CudaQueue owns). Work is
/// done in the order in which it was asked for; the host does not wait unless a function says so.
struct CudaStream {
  CUstream_st* handle = nullptr;  ///< cudaStream_t
  int device = 0;
  CudaQueueState* state = nullptr;  ///< the library handles, plans and workspaces of this queue

  /// The host waits until all work asked for is done.
  void synchronize() const;
};

/// Owns a CUDA stream and what belongs to it. Made and used by one host thread; another one that wants to use its
/// stream calls `use_on_this_thread` first. It must outlive every Buffer that was made on its stream.
class CudaQueue {
 public:
  enum class Priority : std::uint8_t { kNormal, kHigh };  ///< kHigh: communication, whose kernels should not wait

  /// Makes `device` the one of the calling thread. Throws Error(kUsage) when there is no such device.
  explicit CudaQueue(int device, Priority priority = Priority::kNormal);
  ~CudaQueue();
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  [[nodiscard]] CudaStream stream() const;
  void use_on_this_thread() const;

 private:
  std::unique_ptr<CudaQueueState> state_;
};

/// A point in the work of a stream, for other streams and for the host to wait for.
class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept;
  CudaEvent& operator=(CudaEvent&& other) noexcept;

  /// Marks the work that `stream` has been asked for so far; an earlier mark is forgotten.
  void record(const CudaStream& stream);
  /// Later work of `stream` waits for the mark. Before any record: nothing.
  void make_wait(const CudaStream& stream) const;
  /// The host waits for the mark.
  void synchronize() const;
  [[nodiscard]] bool is_done() const;

 private:
  CUevent_st* handle_ = nullptr;
};

[[nodiscard]] int num_cuda_devices();

struct CudaDeviceInfo {
  std::string name;
  std::int64_t memory_bytes = 0, l2_bytes = 0;
  int multiprocessors = 0;
  int capability = 0;  ///< 90 for sm_90
};
[[nodiscard]] CudaDeviceInfo cuda_device_info(int device);

}  // namespace reprise
