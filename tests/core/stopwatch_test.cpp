#include "core/stopwatch.hpp"

#include <gtest/gtest.h>

#include "core/elementwise.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

TEST(Stopwatch, AddsUpTheWorkBetweenItsMarks) {
  on_every_stream([](const Stream& stream) {
    Buffer<float> values(stream, 1 << 14, "values");
    const auto stopwatch = make_stopwatch(stream);
    EXPECT_EQ(stopwatch->take_seconds(), 0.0);
    for (int round = 0; round < 2; ++round) {
      for (int i = 0; i < 3; ++i) {
        stopwatch->start();
        fill(stream, values.view(), 1.0f);
        stopwatch->stop();
      }
      const double seconds = stopwatch->take_seconds();
      EXPECT_GT(seconds, 0.0);
      EXPECT_LT(seconds, 10.0);
      EXPECT_EQ(stopwatch->take_seconds(), 0.0);
    }
  });
}

}  // namespace
}  // namespace reprise
