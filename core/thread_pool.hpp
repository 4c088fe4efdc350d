#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace reprise {

/// Threads of one rank. `run` cuts [0, size) into chunks of `grain` whose bounds depend on size and grain alone, so a
/// result that is computed chunk by chunk has the same bits for every thread count.
class ThreadPool {
 public:
  /// num_threads >= 1 counts the calling thread; 1 starts no thread at all.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int num_threads() const noexcept;

  /// Calls body(begin, end) for every chunk, on any thread, and returns when all are done. The first exception thrown
  /// by a body is rethrown here. Only the owning thread may call; a nested call runs serially.
  void run(std::int64_t size, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise
