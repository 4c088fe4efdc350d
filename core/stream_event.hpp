#pragma once

#include <memory>

#include "core/stream.hpp"

namespace reprise {

/// A point in the work of a stream, for other streams and for the host to wait for. On a CPU, whose work is done when
/// it is asked for, there is nothing to wait for. Used by one host thread; must not outlive the streams' queues.
class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
  StreamEvent(const StreamEvent&) = delete;
  StreamEvent& operator=(const StreamEvent&) = delete;

  /// Marks the work that `stream` has been asked for so far; an earlier mark is forgotten.
  virtual void record(const Stream& stream) = 0;
  /// Later work of `stream` waits for the mark; the host does not. Before any record: nothing.
  virtual void make_wait(const Stream& stream) const = 0;
  /// The host waits for the mark.
  virtual void synchronize() const = 0;
  [[nodiscard]] virtual bool is_done() const = 0;

 protected:
  StreamEvent() = default;
};

[[nodiscard]] std::unique_ptr<StreamEvent> make_stream_event(const CpuStream& stream);
[[nodiscard]] std::unique_ptr<StreamEvent> make_stream_event(const CudaStream& stream);
/// For the streams of this one's device.
[[nodiscard]] inline std::unique_ptr<StreamEvent> make_stream_event(const Stream& stream) {
  return stream.visit([](const auto& device) { return make_stream_event(device); });
}

/// Another queue of a stream's device, whose work runs beside the stream's; on a CPU, which does one thing after the
/// other, the stream itself. Outlives what lies on its stream.
class SideQueue {
 public:
  virtual ~SideQueue() = default;
  SideQueue(const SideQueue&) = delete;
  SideQueue& operator=(const SideQueue&) = delete;

  [[nodiscard]] virtual Stream stream() const = 0;

 protected:
  SideQueue() = default;
};

using QueuePriority = CudaQueue::Priority;

[[nodiscard]] std::unique_ptr<SideQueue> make_side_queue(const CpuStream& stream, QueuePriority priority);
[[nodiscard]] std::unique_ptr<SideQueue> make_side_queue(const CudaStream& stream, QueuePriority priority);
[[nodiscard]] inline std::unique_ptr<SideQueue> make_side_queue(const Stream& stream, QueuePriority priority) {
  return stream.visit([&](const auto& device) { return make_side_queue(device, priority); });
}

/// Later work of `stream` waits for what `other` has been asked for so far. `event` is used for it and free again.
inline void wait_for(StreamEvent& event, const Stream& other, const Stream& stream) {
  event.record(other);
  event.make_wait(stream);
}

}  // namespace reprise
