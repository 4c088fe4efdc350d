#include "core/cuda_stream.hpp"
#include "tests/support/device.hpp"

namespace reprise {

const Stream& test_stream() {
  static thread_local const CudaQueue queue(0);
  static thread_local const Stream stream(queue.stream());
  return stream;
}

std::vector<Stream> test_streams() {
  static thread_local const CudaQueue other(0);
  return {test_stream(), Stream(other.stream())};
}

}  // namespace reprise
