#include "core/buffer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

template <class T>
bool is_zero(const std::vector<T>& values) {
  return std::all_of(values.begin(), values.end(), [](T value) { return value == T{}; });
}

TEST(Buffer, IsZeroedAndAlignedAtEverySize) {
  for (const std::int64_t size : {1, 15, 16, 1000, 524'287, 524'288, 524'289, 1'500'000}) {
    Buffer<float> buffer(test_stream(), size, "test");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.view().data) % 64, 0U);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(buffer.bytes(), 4 * size);
    EXPECT_TRUE(is_zero(to_host(buffer))) << size;
    copy_to_device<float>(test_stream(), std::vector<float>{1.0f}, buffer.view().slice(size - 1, 1));
    EXPECT_EQ(to_host(buffer).back(), 1.0f);
  }
}

TEST(Buffer, MovesAndEmptyOnesAreOrdinary) {
  Buffer<int> empty(test_stream(), 0, "nothing");
  EXPECT_EQ(empty.view().data, nullptr);
  EXPECT_TRUE(to_host(empty).empty());
  Buffer<int> first(test_stream(), 10, "first");
  copy_to_device<int>(test_stream(), std::vector<int>{7}, first.view().slice(3, 1));
  const int* const memory = first.view().data;
  Buffer<int> second(std::move(first));
  EXPECT_EQ(second.view().data, memory);
  EXPECT_EQ(to_host(second)[3], 7);
  empty = std::move(second);
  EXPECT_EQ(empty.view().data, memory);
  EXPECT_EQ(empty.size(), 10);
}

TEST(Buffer, OutOfMemoryNamesWhatItWasFor) {
  for (const std::int64_t size : {std::int64_t{1} << 50, std::int64_t{1} << 60}) {
    try {
      const Buffer<std::uint8_t> buffer(test_stream(), size, "the gradients");
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
    for (const auto& [begin, end] : {std::pair{size / 4, size / 2}, {size / 3, size / 3 + 1}, {0L, size}, {7L, 7L}}) {
      auto buffer = to_device(std::vector<float>(static_cast<std::size_t>(size), 3.0f));
      buffer.discard(begin, end);
      const auto values = to_host(buffer);
      EXPECT_TRUE(is_zero(std::vector<float>(values.begin() + begin, values.begin() + end)));
      EXPECT_EQ(std::count(values.begin(), values.end(), 3.0f), size - (end - begin));
    }
  }
}

TEST(HostBuffer, CarriesCopiesThatNobodyWaitsFor) {
  constexpr std::int64_t kSize = 1000;
  HostBuffer<std::int32_t> sent(test_stream(), kSize, "sent"), received(test_stream(), kSize, "received");
  Buffer<std::int32_t> device(test_stream(), kSize, "device");
  for (std::int64_t i = 0; i < kSize; ++i) sent.view()[i] = static_cast<std::int32_t>(3 * i);
  copy_to_device<std::int32_t>(test_stream(), sent.view(), device.view());
  start_copy_to_host<std::int32_t>(test_stream(), device.view(), received.view());
  zero(test_stream(), device.view());
  synchronize(test_stream());
  for (std::int64_t i = 0; i < kSize; ++i) ASSERT_EQ(received.view()[i], 3 * i);
  EXPECT_TRUE(is_zero(to_host(device)));
  HostBuffer<std::int32_t> moved(std::move(received));
  EXPECT_EQ(received.size(), 0);
  EXPECT_EQ(moved.view()[1], 3);
}

TEST(Transfer, SizesMustMatch) {
  Buffer<float> two(test_stream(), 2, "two"), three(test_stream(), 3, "three");
  std::vector<float> host(3);
  EXPECT_THROW(copy_on_device<float>(test_stream(), two.view(), three.view()), Error);
  EXPECT_THROW(copy_to_host<float>(test_stream(), two.view(), host), Error);
  EXPECT_THROW(copy_to_device<float>(test_stream(), host, two.view()), Error);
}

}  // namespace
}  // namespace reprise
