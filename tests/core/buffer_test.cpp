#include "core/buffer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "core/error.hpp"

namespace reprise {
namespace {

const Stream kCpu{CpuStream{}};

template <class T>
bool is_zero(VectorView<T> values) {
  return std::all_of(values.begin(), values.end(), [](T value) { return value == T{}; });
}

TEST(Buffer, IsZeroedAndAlignedAtEverySize) {
  for (const std::int64_t size : {1, 15, 16, 1000, 524'287, 524'288, 524'289, 1'500'000}) {
    Buffer<float> buffer(kCpu, size, "test");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.view().data) % 64, 0U);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(buffer.bytes(), 4 * size);
    EXPECT_TRUE(is_zero(buffer.view())) << size;
    buffer.view()[size - 1] = 1.0f;
  }
}

TEST(Buffer, MovesAndEmptyOnesAreOrdinary) {
  Buffer<int> empty(kCpu, 0, "nothing");
  EXPECT_EQ(empty.view().data, nullptr);
  Buffer<int> first(kCpu, 10, "first");
  first.view()[3] = 7;
  const int* const memory = first.view().data;
  Buffer<int> second(std::move(first));
  EXPECT_EQ(second.view().data, memory);
  EXPECT_EQ(second.view()[3], 7);
  empty = std::move(second);
  EXPECT_EQ(empty.view().data, memory);
  EXPECT_EQ(empty.size(), 10);
}

TEST(Buffer, OutOfMemoryNamesWhatItWasFor) {
  for (const std::int64_t size : {std::int64_t{1} << 50, std::int64_t{1} << 60}) {
    try {
      const Buffer<std::uint8_t> buffer(kCpu, size, "the gradients");
      FAIL() << "nothing was thrown";
    } catch (const OutOfMemory& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("the gradients"), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(size)), std::string::npos) << message;
    }
  }
}

TEST(Buffer, DiscardedRangesReadAsZeroAndNeighboursStay) {
  for (const std::int64_t size : {1'000, 5'000, 1'000'000}) {
    Buffer<float> buffer(kCpu, size, "test");
    const auto values = buffer.view();
    for (const auto& [begin, end] : {std::pair{size / 4, size / 2}, {size / 3, size / 3 + 1}, {0L, size}, {7L, 7L}}) {
      std::fill(values.begin(), values.end(), 3.0f);
      buffer.discard(begin, end);
      EXPECT_TRUE(is_zero(values.slice(begin, end - begin)));
      EXPECT_EQ(std::count(values.begin(), values.end(), 3.0f), size - (end - begin));
    }
  }
}

}  // namespace
}  // namespace reprise
