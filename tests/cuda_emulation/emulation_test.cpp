// The emulation itself: right kernels pass in every order, and the mistakes that it is there for are seen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/cuda_emulation/emulation_kernels.hpp"
#include "tests/support/cuda_emulation/block.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

using cuda_emulation::Fault;
using cuda_emulation::Order;
using cuda_emulation::ScopedSettings;
using cuda_emulation::Settings;

const std::vector<Settings> kEveryOrder = {
    {Order::kAscending},   {Order::kDescending},         {Order::kShuffled, 1},         {Order::kShuffled, 2},
    {Order::kShuffled, 3}, {Order::kAscending, 1, true}, {Order::kDescending, 1, true}, {Order::kShuffled, 4, true}};

std::vector<float> integers(std::int64_t count) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(static_cast<int>(random_uniform(1, static_cast<std::uint64_t>(i)) * 9.0)));
  }
  return values;
}

using RowSums = void (*)(const CudaStream&, MatrixView<const float>, VectorView<float>, Mistake);

/// How many of the orders give the plain sums.
std::size_t orders_that_pass(RowSums kernel, Mistake mistake) {
  constexpr std::int64_t kRows = 5, kCols = 3000;
  const auto x = integers(kRows * kCols);
  std::vector<float> expected;
  for (std::int64_t row = 0; row < kRows; ++row) {
    expected.push_back(std::accumulate(x.begin() + row * kCols, x.begin() + (row + 1) * kCols, 0.0f));
  }
  std::size_t passed = 0;
  for (const Settings& settings : kEveryOrder) {
    const ScopedSettings scoped(settings);
    const CudaQueue queue(0);
    const Stream stream(queue.stream());
    const auto device_x = to_device(stream, x);
    Buffer<float> sums(stream, kRows, "sums");
    try {
      kernel(queue.stream(), {device_x.view().data, kRows, kCols}, sums.view(), mistake);
      passed += to_host(stream, sums.view()) == expected ? 1 : 0;
    } catch (const Fault&) {
    }
  }
  return passed;
}

TEST(Emulation, RightKernelsPassInEveryOrder) {
  EXPECT_EQ(orders_that_pass(row_sums, Mistake::kNone), kEveryOrder.size());
  EXPECT_EQ(orders_that_pass(ring_row_sums, Mistake::kNone), kEveryOrder.size());
}

TEST(Emulation, ARemovedBarrierIsSeen) {
  EXPECT_LT(orders_that_pass(row_sums, Mistake::kNoBarrier), kEveryOrder.size());
  EXPECT_EQ(orders_that_pass(ring_row_sums, Mistake::kNoBarrierAfterCopy), 0U);
  EXPECT_EQ(orders_that_pass(ring_row_sums, Mistake::kNoReuseBarrier), 0U);
}

TEST(Emulation, ARemovedOrLateWaitForCopiesIsSeenInEveryOrder) {
  EXPECT_EQ(orders_that_pass(ring_row_sums, Mistake::kNoCopyWait), 0U);
  EXPECT_EQ(orders_that_pass(ring_row_sums, Mistake::kLateCopyWait), 0U);
}

/// The message of the fault that `body` and the work it asks for end with.
std::string fault_of(const std::function<void()>& body) {
  try {
    body();
    synchronize(test_stream());
  } catch (const Fault& fault) {
    return fault.what();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_fault(const std::function<void()>& body, const std::vector<std::string>& parts) {
  const std::string message = fault_of(body);
  for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(Emulation, DivergentBarriersAreReportedWithKernelAndPlace) {
  expect_fault([] { divergent_barrier(test_stream().cuda()); },
               {"kernel 'divergent_barrier'", "divergent barrier",
                "64 threads wait at __syncthreads (emulation_kernels.cu:", "64 threads have ended"});
  Buffer<float> out(test_stream(), 32, "out");
  expect_fault([&] { divergent_shuffle(test_stream().cuda(), out.view()); },
               {"kernel 'divergent_shuffle'", "different collectives", "__shfl_xor_sync", "__shfl_down_sync"});
  // The scheduler is as good as new.
  EXPECT_EQ(orders_that_pass(row_sums, Mistake::kNone), kEveryOrder.size());
}

TEST(Emulation, SharedMemoryIsPoisonedAndBounded) {
  Buffer<float> out(test_stream(), 1, "out");
  take_shared(test_stream().cuda(), 8, 8, out.view());
  EXPECT_TRUE(std::isnan(to_host(out)[0]));
  expect_fault([&] { take_shared(test_stream().cuda(), 8, 9, out.view()); },
               {"kernel 'take_shared'", "more shared memory than its launch asked for"});
  expect_fault([&] { take_shared(test_stream().cuda(), 1 << 20, 8, out.view()); },
               {"kernel 'take_shared' could not be launched", "4194304 bytes of shared memory"});
}

TEST(Emulation, OrdersAreWhatTheySay) {
  const auto order_of = [](const Settings& settings) {
    const ScopedSettings scoped(settings);
    Buffer<std::int32_t> order(test_stream(), 96, "order"), counter(test_stream(), 1, "counter");
    run_order(test_stream().cuda(), order.view(), counter.view());
    return to_host(order);
  };
  std::vector<std::int32_t> ascending(96);
  std::iota(ascending.begin(), ascending.end(), 0);
  EXPECT_EQ(order_of({Order::kAscending}), ascending);
  EXPECT_EQ(order_of({Order::kDescending}), std::vector<std::int32_t>(ascending.rbegin(), ascending.rend()));
  const auto shuffled = order_of({Order::kShuffled, 5});
  EXPECT_NE(shuffled, ascending);
  EXPECT_TRUE(std::is_permutation(shuffled.begin(), shuffled.end(), ascending.begin()));
  EXPECT_EQ(order_of({Order::kShuffled, 5}), shuffled);
  EXPECT_NE(order_of({Order::kShuffled, 6}), shuffled);
}

TEST(Emulation, TablesOfPointersReachTheDevice) {
  Buffer<float> target(test_stream(), 1, "target");
  const auto table = to_device(std::vector<float*>{target.view().data});
  write_through_table(test_stream().cuda(), {const_cast<float* const*>(table.view().data), 1}, 3.0f);
  EXPECT_EQ(to_host(target)[0], 3.0f);
}

TEST(Emulation, LateStreamsDoTheirWorkWhenSomethingWaits) {
  const ScopedSettings scoped({Order::kAscending, 1, true});
  const CudaQueue first(0), second(0);
  const Stream stream(first.stream()), other(second.stream());
  Buffer<float> x(stream, 4, "x"), y(other, 4, "y");
  HostBuffer<float> host(stream, 4, "host");
  write_one(first.stream(), x.view(), 2);
  start_copy_to_host<float>(stream, x.view(), host.view());
  EXPECT_TRUE(std::isnan(host.view()[2]));  // nobody has waited
  CudaEvent event;
  event.record(first.stream());
  event.make_wait(second.stream());
  copy_on_device<float>(other, x.view(), y.view());
  EXPECT_EQ(to_host(other, y.view()), (std::vector<float>{0.0f, 0.0f, 1.0f, 0.0f}));
  EXPECT_TRUE(event.is_done());
  synchronize(stream);
  EXPECT_EQ(host.view()[2], 1.0f);
}

TEST(Emulation, CopiesStayInsideTheirMemory) {
  Buffer<float> x(test_stream(), 4, "x");
  std::vector<float> host(8);
  expect_fault(
      [&] {
        copy_to_host<float>(test_stream(), {x.view().data, 8}, host);
      },
      {"copy of 32 bytes reaches beyond"});
  expect_fault([&] { copy_on_device<float>(test_stream(), VectorView<float>(host).slice(0, 4), x.view()); },
               {"direction does not fit"});
}

using EmulationDeathTest = testing::Test;

TEST(EmulationDeathTest, HostCodeCannotFollowADeviceAddress) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  Buffer<float> x(test_stream(), 4, "x");
  EXPECT_DEATH(
      {
        volatile float value = x.view()[0];
        static_cast<void>(value);
      },
      "");
}

TEST(EmulationDeathTest, KernelsCannotReachBeyondTheirMemory) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  Buffer<float> x(test_stream(), 16, "x");
  write_one(test_stream().cuda(), x.view(), 15);
  EXPECT_DEATH(
      {
        write_one(test_stream().cuda(), x.view(), 16);
        synchronize(test_stream());
      },
      "");
}

TEST(Emulation, DeviceMemoryComesBack) {
  synchronize(test_stream());  // what earlier tests gave back
  const std::size_t before = cuda_emulation::device_bytes_in_use();
  {
    const Buffer<float> x(test_stream(), 1000, "x");
    EXPECT_EQ(cuda_emulation::device_bytes_in_use(), before + 4000);
  }
  synchronize(test_stream());
  EXPECT_EQ(cuda_emulation::device_bytes_in_use(), before);
}

}  // namespace
}  // namespace reprise
