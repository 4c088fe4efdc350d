#include "tests/support/cuda_emulation/queue.hpp"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "tests/support/cuda_emulation/block.hpp"

namespace cuda_emulation {
namespace {

// One lock for all streams; it is not held while work runs, so work may wait for other streams and other ranks.
std::mutex mutex;
std::condition_variable changed;

/// Runs the front of the queue; with the lock held, which is given up meanwhile.
void run_front(CUstream_st* stream, std::unique_lock<std::mutex>& lock) {
  const auto work = std::move(stream->waiting.front());
  stream->waiting.pop_front();
  stream->is_busy = true;
  lock.unlock();
  const auto finish = [&] {
    lock.lock();
    stream->is_busy = false;
    ++stream->done;
    changed.notify_all();
  };
  try {
    work();
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

}  // namespace

void enqueue(CUstream_st* stream, std::function<void()> work) {
  if (stream == nullptr) throw Fault("work on the default stream: every call names a stream of its own");
  std::uint64_t position = 0;
  {
    const std::lock_guard lock(mutex);
    stream->waiting.push_back(std::move(work));
    position = ++stream->asked;
  }
  if (!stream->is_late) complete(stream, position);
}

void complete(CUstream_st* stream, std::uint64_t position) {
  std::unique_lock lock(mutex);
  while (stream->done < position) {
    if (stream->is_busy) {
      changed.wait(lock);
    } else {
      run_front(stream, lock);
    }
  }
}

std::uint64_t position_of(const CUstream_st* stream) {
  const std::lock_guard lock(mutex);
  return stream->asked;
}

bool is_complete(const CUstream_st* stream, std::uint64_t position) {
  const std::lock_guard lock(mutex);
  return stream->done >= position;
}

void advance(CUstream_st* stream) {
  std::unique_lock lock(mutex);
  if (!stream->is_busy && !stream->waiting.empty()) run_front(stream, lock);
}

void enqueue_wait(CUstream_st* stream, const CUevent_st& event) {
  if (event.stream == nullptr || event.stream == stream) return;
  enqueue(stream, [source = event.stream, position = event.position] { complete(source, position); });
}

}  // namespace cuda_emulation
