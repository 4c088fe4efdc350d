#include "core/host_parts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "tests/support/device.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kPart = 8;

std::vector<float> ascending(std::int64_t size) {
  std::vector<float> values(static_cast<std::size_t>(size));
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

TEST(HostView, ShowsTheDevicesValuesAndIsTheViewItselfOnACpu) {
  on_every_stream([](const Stream& stream) {
    const auto values = to_device(stream, ascending(5));
    const auto host = on_host(stream, values.view());
    EXPECT_TRUE(std::equal(host.view().begin(), host.view().end(), ascending(5).begin()));
    EXPECT_EQ(host.view().data == values.view().data, stream.is_cpu());
    EXPECT_TRUE(on_host(stream, VectorView<float>{}).view().empty());
  });
}

TEST(HostParts, ReadEveryElementOnceAndInOrder) {
  on_every_stream([](const Stream& stream) {
    HostParts<float> parts(stream, kPart, "test");
    for (const std::int64_t size : {0, 1, 7, 8, 9, 16, 41}) {
      const auto values = to_device(stream, ascending(size));
      std::vector<float> seen;
      parts.read(values.view(), [&](std::int64_t begin, VectorView<const float> part) {
        EXPECT_EQ(begin, static_cast<std::int64_t>(seen.size()));
        EXPECT_TRUE(stream.is_cpu() || part.size <= kPart);
        seen.insert(seen.end(), part.begin(), part.end());
      });
      EXPECT_EQ(seen, ascending(size));
    }
  });
}

TEST(HostParts, WriteAndChangeEveryElement) {
  on_every_stream([](const Stream& stream) {
    HostParts<float> parts(stream, kPart, "test");
    for (const std::int64_t size : {0, 1, 7, 8, 9, 16, 41}) {
      Buffer<float> values(stream, size, "values");
      parts.write(values.view(), [](std::int64_t begin, VectorView<float> part) {
        std::iota(part.begin(), part.end(), static_cast<float>(begin + 1));
      });
      EXPECT_EQ(to_host(stream, values.view()), ascending(size));
      parts.change(values.view(), [](std::int64_t begin, VectorView<float> part) {
        if (begin == 0) part[0] += 100.0f;
      });
      std::vector<float> expected = ascending(size);
      if (size > 0) expected[0] += 100.0f;
      EXPECT_EQ(to_host(stream, values.view()), expected);
    }
  });
}

TEST(HostParts, HoldWholeUnitsEvenWhereOneIsLargerThanAPart) {
  on_every_stream([](const Stream& stream) {
    HostParts<float> parts(stream, kPart, "test");
    const auto values = to_device(stream, ascending(33));
    for (const std::int64_t unit : {3, 11}) {
      std::vector<float> seen;
      const auto take = [&](std::int64_t begin, VectorView<const float> part) {
        EXPECT_EQ(begin % unit, 0);
        EXPECT_EQ(part.size % unit, 0);
        seen.insert(seen.end(), part.begin(), part.end());
      };
      parts.read(values.view(), take, unit);
      EXPECT_EQ(seen, ascending(33));
    }
  });
}

TEST(HostParts, AreSoundAfterABodyThatThrew) {
  on_every_stream([](const Stream& stream) {
    HostParts<float> parts(stream, kPart, "test");
    auto values = to_device(stream, ascending(24));
    const auto fail_late = [](std::int64_t begin, VectorView<float> part) {
      if (begin > 0 || part.size == 24) throw std::runtime_error("late");
      std::fill(part.begin(), part.end(), 0.0f);
    };
    EXPECT_THROW(parts.write(values.view(), fail_late), std::runtime_error);
    EXPECT_THROW(
        parts.read(values.view(), [](std::int64_t, VectorView<const float>) { throw std::runtime_error("at once"); }),
        std::runtime_error);
    parts.write(values.view(), [](std::int64_t begin, VectorView<float> part) {
      std::iota(part.begin(), part.end(), static_cast<float>(begin + 1));
    });
    EXPECT_EQ(to_host(stream, values.view()), ascending(24));
  });
}

}  // namespace
}  // namespace reprise
