#include <gtest/gtest.h>

#include "core/elementwise.hpp"
#include "tests/support/device.hpp"

namespace reprise {

const Stream& test_stream() {
  static const Stream stream{CpuStream{}};
  return stream;
}

void on_every_stream(const std::function<void(const Stream&)>& body) {
  static thread_local ThreadPool pool(2);
  const SimdLevel highest = simd_level();
  for (int level = 0; level <= static_cast<int>(highest); ++level) {
    set_simd_level(static_cast<SimdLevel>(level));
    SCOPED_TRACE(simd_level_name());
    body(Stream(CpuStream{}));
    body(Stream(CpuStream{&pool}));
  }
  set_simd_level(highest);
}

}  // namespace reprise
