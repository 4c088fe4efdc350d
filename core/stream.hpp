#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <variant>

#include "core/cuda_stream.hpp"
#include "core/thread_pool.hpp"

namespace reprise {

/// Where CPU kernels run: the threads of this rank (not owned; null = the calling thread alone).
struct CpuStream {
  ThreadPool* pool = nullptr;

  /// body(begin, end) over chunks of [0, size); see ThreadPool::run. A grain below 1 counts as 1.
  void parallel_for(std::int64_t size, std::int64_t grain,
                    const std::function<void(std::int64_t, std::int64_t)>& body) const {
    grain = std::max<std::int64_t>(grain, 1);
    if (pool == nullptr || pool->num_threads() == 1 || size <= grain) {
      for (std::int64_t begin = 0; begin < size; begin += grain) body(begin, std::min(size, begin + grain));
    } else {
      pool->run(size, grain, body);
    }
  }
  [[nodiscard]] int num_threads() const { return pool == nullptr ? 1 : pool->num_threads(); }
};

// The two builds of a library, with and without CUDA, differ in this type; the name of its namespace keeps the linker
// from mixing them. Sources that are compiled once for both (PLAIN in CMakeLists.txt) must not see it.
#if defined(REPRISE_PLAIN_SOURCE)
#error "a source that is listed as PLAIN includes core/stream.hpp"
#elif defined(REPRISE_WITH_CUDA)
#define REPRISE_DEVICES with_cuda
#else
#define REPRISE_DEVICES without_cuda
#endif

inline namespace REPRISE_DEVICES {

#ifdef REPRISE_WITH_CUDA
using Device = std::variant<CpuStream, CudaStream>;
#else
using Device = std::variant<CpuStream>;
#endif

/// The compute device and queue that a kernel runs on. Kernels are free functions overloaded on the alternatives; the
/// overload that takes Stream is one `visit` line. The constructor is explicit: an implicit one would let a missing
/// overload compile and call itself for ever.
class Stream {
 public:
  explicit Stream(Device device) : device_(device) {}

  template <class Visitor>
  decltype(auto) visit(Visitor&& visitor) const {
    return std::visit(std::forward<Visitor>(visitor), device_);
  }
  [[nodiscard]] bool is_cpu() const { return std::holds_alternative<CpuStream>(device_); }
  [[nodiscard]] const CpuStream& cpu() const { return std::get<CpuStream>(device_); }
  /// A template, because there is no such alternative in a build without CUDA.
  template <class Alternative = CudaStream>
  [[nodiscard]] const Alternative& cuda() const {
    return std::get<Alternative>(device_);
  }

 private:
  Device device_;
};

}  // namespace REPRISE_DEVICES

}  // namespace reprise
