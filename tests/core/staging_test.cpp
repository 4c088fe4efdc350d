#include "core/staging.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "core/arena.hpp"
#include "core/elementwise.hpp"
#include "core/host_arrays.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

std::vector<float> ramp(std::int64_t size, float first) {
  std::vector<float> values(static_cast<std::size_t>(size));
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(Staging, HandsOutAlignedPlacesThatDoNotOverlap) {
  on_every_stream([](const Stream& stream) {
    Staging staging(true);
    std::vector<Staging::Place> places;
    for (const std::int64_t bytes : {1, 64, 65, 0, 70000, 3}) {
      places.push_back(staging.take(stream, bytes, "bytes"));
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(places.back().host) % 64, 0u);
      EXPECT_EQ(places.back().device == nullptr, stream.is_cpu());
      std::memset(places.back().host, static_cast<int>(places.size()), static_cast<std::size_t>(bytes));
    }
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (!stream.is_cpu()) {
        EXPECT_EQ(staging.device_of(places[i].host), places[i].device);
      }
      if (i != 3) {  // of no bytes
        EXPECT_EQ(static_cast<std::size_t>(places[i].host[0]), i + 1);
      }
    }
    EXPECT_EQ(staging.taken_bytes(), 64 + 64 + 128 + 64 + 70016 + 64);
    staging.give_back(stream);
    EXPECT_EQ(staging.taken_bytes(), 0);
  });
}

TEST(Staging, AllocatesNothingOnceTheLargestRoundIsKnown) {
  on_every_stream([](const Stream& stream) {
    Staging staging(true);
    const auto round = [&] {
      for (const std::int64_t bytes : {100000, 5, 300000}) static_cast<void>(staging.take(stream, bytes, "bytes"));
      staging.give_back(stream);
      synchronize(stream);
    };
    for (int i = 0; i < 3; ++i) round();
    const std::int64_t allocations = staging.allocations();
    for (int i = 0; i < 5; ++i) round();
    EXPECT_EQ(staging.allocations(), allocations);
  });
}

// The host never waits, so what it hands over next must not reach what the stream has not read yet.
TEST(HostArrays, RoundsThatAreStillUnderWayKeepTheirValues) {
  on_every_stream([](const Stream& stream) {
    constexpr int kRounds = 6;
    constexpr std::int64_t kSize = 5000;
    HostArrays arrays;
    Buffer<float> sums(stream, kRounds * kSize, "sums");
    for (int i = 0; i < kRounds; ++i) {
      arrays.reset(stream);
      const auto first = arrays.vector<float>(stream, kSize, "first"),
                 second = arrays.vector<float>(stream, kSize, "second");
      std::iota(first.begin(), first.end(), static_cast<float>(i));
      const auto there = arrays.on_device<float>(stream, first);
      std::iota(second.begin(), second.end(), 10.0f);
      const auto other = arrays.on_device<float>(stream, second);
      arrays.make_ready(stream);
      const auto sum = sums.view().slice(i * kSize, kSize);
      add<float, float>(stream, there, sum);
      add<float, float>(stream, other, sum);
    }
    const std::vector<float> got = to_host(stream, sums.view());
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto round = static_cast<float>(i / kSize), place = static_cast<float>(i % kSize);
      ASSERT_EQ(got[i], round + place + 10.0f + place) << i;
    }
  });
}

TEST(ArenaCopy, TakesTheValuesAtOnce) {
  on_every_stream([](const Stream& stream) {
    Arena arena(stream);
    std::vector<VectorView<float>> copies;
    std::vector<float> values;
    for (int i = 0; i < 40; ++i) {  // more than one round of staging
      values = ramp(20000, static_cast<float>(i));
      copies.push_back(arena.copy<float>(values, "values"));
      std::fill(values.begin(), values.end(), -1.0f);
    }
    EXPECT_TRUE(arena.copy<float>(VectorView<const float>{}, "nothing").empty());
    for (std::size_t i = 0; i < copies.size(); ++i) {
      EXPECT_EQ(to_host(stream, copies[i]), ramp(20000, static_cast<float>(i)));
    }
  });
}

TEST(SideQueue, WorksBesideAndIsWaitedFor) {
  on_every_stream([](const Stream& stream) {
    const auto queue = make_side_queue(stream, QueuePriority::kHigh);
    const Stream side = queue->stream();
    const auto event = make_stream_event(stream);
    EXPECT_TRUE(event->is_done());  // before any record
    Buffer<float> x(stream, 1000, "x"), y(stream, 1000, "y");
    const std::vector<float> values = ramp(1000, 1.0f);
    copy_to_device<float>(stream, values, x.view());
    wait_for(*event, stream, side);
    copy_on_device<float>(side, x.view(), y.view());
    wait_for(*event, side, stream);
    zero(stream, x.view());
    EXPECT_EQ(to_host(stream, y.view()), values);
    event->synchronize();
    EXPECT_TRUE(event->is_done());
  });
}

TEST(StreamEvent, MakesTheHostWaitForWhatWasAskedBefore) {
  on_every_stream([](const Stream& stream) {
    const auto value = to_device(stream, std::vector<double>{42.0});
    HostBuffer<double> read(stream, 1, "read");
    read.view()[0] = 0.0;
    start_copy_to_host<double>(stream, value.view(), read.view());
    const auto event = make_stream_event(stream);
    event->record(stream);
    event->synchronize();
    EXPECT_EQ(read.view()[0], 42.0);
  });
}

}  // namespace
}  // namespace reprise
