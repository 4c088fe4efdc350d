#include "core/cuda_stream.hpp"
#include "tests/support/device.hpp"

namespace reprise {

const Stream& test_stream() {
  static thread_local const CudaQueue queue(0);
  static thread_local const Stream stream(queue.stream());
  return stream;
}

void on_every_stream(const std::function<void(const Stream&)>& body) {
  static thread_local const CudaQueue other(0);
  body(test_stream());
  body(Stream(other.stream()));
}

}  // namespace reprise
