#include "core/stream_event.hpp"

namespace reprise {

namespace {

class HostEvent final : public StreamEvent {
 public:
  void record(const Stream&) override {}
  void make_wait(const Stream&) const override {}
  void synchronize() const override {}
  [[nodiscard]] bool is_done() const override { return true; }
};

class HostQueue final : public SideQueue {
 public:
  explicit HostQueue(const CpuStream& stream) : stream_(stream) {}
  [[nodiscard]] Stream stream() const override { return Stream(stream_); }

 private:
  CpuStream stream_;
};

}  // namespace

std::unique_ptr<StreamEvent> make_stream_event(const CpuStream&) {
  return std::make_unique<HostEvent>();
}

std::unique_ptr<SideQueue> make_side_queue(const CpuStream& stream, QueuePriority) {
  return std::make_unique<HostQueue>(stream);
}

}  // namespace reprise
