#include "core/cuda_stream.hpp"
#include "core/stream_event.hpp"

namespace reprise {

namespace {

class DeviceEvent final : public StreamEvent {
 public:
  void record(const Stream& stream) override { event_.record(stream.cuda()); }
  void make_wait(const Stream& stream) const override { event_.make_wait(stream.cuda()); }
  void synchronize() const override { event_.synchronize(); }
  [[nodiscard]] bool is_done() const override { return event_.is_done(); }

 private:
  CudaEvent event_;
};

class DeviceQueue final : public SideQueue {
 public:
  DeviceQueue(int device, QueuePriority priority) : queue_(device, priority) {}
  [[nodiscard]] Stream stream() const override { return Stream(queue_.stream()); }

 private:
  CudaQueue queue_;
};

}  // namespace

std::unique_ptr<StreamEvent> make_stream_event(const CudaStream&) {
  return std::make_unique<DeviceEvent>();
}

std::unique_ptr<SideQueue> make_side_queue(const CudaStream& stream, QueuePriority priority) {
  return std::make_unique<DeviceQueue>(stream.device, priority);
}

}  // namespace reprise
