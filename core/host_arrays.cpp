#include "core/host_arrays.hpp"

namespace reprise {

HostArrays::~HostArrays() {
  if (queue_ == nullptr) return;
  try {
    synchronize(queue_->stream());
  } catch (...) {  // a device that has failed: nothing is under way any more
  }
}

Stream HostArrays::copies(const Stream& stream) {
  if (queue_ == nullptr) {
    queue_ = make_side_queue(stream, QueuePriority::kNormal);
    event_ = make_stream_event(stream);
  }
  const Stream copies = queue_->stream();
  if (seen_allocations_ != staging_.allocations()) wait_for(*event_, stream, copies);
  seen_allocations_ = staging_.allocations();
  return copies;
}

void HostArrays::make_ready(const Stream& stream) {
  if (queue_ != nullptr) wait_for(*event_, queue_->stream(), stream);
}

}  // namespace reprise
