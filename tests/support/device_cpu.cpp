#include "tests/support/device.hpp"

namespace reprise {

const Stream& test_stream() {
  static const Stream stream{CpuStream{}};
  return stream;
}

std::vector<Stream> test_streams() {
  static thread_local ThreadPool pool(2);
  return {Stream(CpuStream{}), Stream(CpuStream{&pool})};
}

}  // namespace reprise
