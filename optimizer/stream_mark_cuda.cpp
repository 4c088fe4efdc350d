#include <memory>

#include "optimizer/stream_mark.hpp"

namespace reprise {

std::function<void()> mark_work(const CudaStream& stream) {
  const auto event = std::make_shared<CudaEvent>();
  event->record(stream);
  return [event] { event->synchronize(); };
}

}  // namespace reprise
