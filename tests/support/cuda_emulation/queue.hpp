#pragma once

#include <cstdint>
#include <deque>
#include <functional>

/// A point of a stream's work: done when the stream has done that much.
struct CUevent_st {
  struct CUstream_st* stream = nullptr;  // null: never recorded
  std::uint64_t position = 0;
  double time_ms = 0.0;
};

/// Work in the order in which it was asked for.
struct CUstream_st {
  int device = 0;
  bool is_late = false;
  bool is_busy = false;  // a host thread runs its work
  std::uint64_t asked = 0, done = 0;
  std::deque<std::function<void()>> waiting;
};

namespace cuda_emulation {

/// Runs the work now, or keeps it until something waits for the stream. A Fault comes out where the work runs.
void enqueue(CUstream_st* stream, std::function<void()> work);
/// Runs the stream's work up to a position.
void complete(CUstream_st* stream, std::uint64_t position);
[[nodiscard]] std::uint64_t position_of(const CUstream_st* stream);
[[nodiscard]] bool is_complete(const CUstream_st* stream, std::uint64_t position);
/// Runs one piece of work, so that whoever polls comes to an end.
void advance(CUstream_st* stream);
/// Work that waits for `event` as it is now.
void enqueue_wait(CUstream_st* stream, const CUevent_st& event);

}  // namespace cuda_emulation
