#include "launcher/prefetcher.hpp"

#include <gtest/gtest.h>

#include <atomic>

#include "launcher/fault_injection.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

TEST(Prefetcher, GivesItemsInOrderAndStaysAhead) {
  std::atomic<int> made = 0;
  Prefetcher<std::int64_t> prefetcher(3, 50, [&](std::int64_t i) {
    ++made;
    return i * i;
  });
  for (std::int64_t i = 3; i < 50; ++i) {
    EXPECT_EQ(prefetcher.next(), i * i);
    EXPECT_LE(made, i - 3 + 1 + 3);  // taken, two ready, one being made
  }
}

TEST(Prefetcher, ThrowsAFailureWhereItsItemWouldHaveCome) {
  Prefetcher<int> prefetcher(0, 10, [](std::int64_t i) -> int {
    require(i != 2, ErrorKind::kData, "item {}", i);
    return static_cast<int>(i);
  });
  EXPECT_EQ(prefetcher.next(), 0);
  EXPECT_EQ(prefetcher.next(), 1);
  expect_error(ErrorKind::kData, {"item 2"}, [&] { (void)prefetcher.next(); });
}

TEST(Prefetcher, EndsWhileItsThreadWaitsForRoom) {
  for (int i = 0; i < 20; ++i) {
    Prefetcher<int> prefetcher(0, 1000, [](std::int64_t item) { return static_cast<int>(item); });
    if (i % 2 == 0) {
      EXPECT_EQ(prefetcher.next(), 0);
    }
  }
}

TEST(FaultInjection, FiresAtItsPointCountAndRankOnly) {
  const FaultInjection fault = FaultInjection::parse("train.step=7,rank=1,action=nan", 1);
  EXPECT_FALSE(fault.reached("train.step", 6));
  EXPECT_FALSE(fault.reached("collect.unit", 7));
  EXPECT_TRUE(fault.reached("train.step", 7));
  EXPECT_FALSE(FaultInjection::parse("train.step=7,rank=1,action=nan", 0).reached("train.step", 7));
  EXPECT_FALSE(FaultInjection::parse("", 0).reached("train.step", 0));
}

TEST(FaultInjection, RefusesWhatItDoesNotUnderstand) {
  for (const char* text : {"train.step", "train.step=x", "train.step=7,action=explode", "train.step=7,rank=one"}) {
    expect_error(ErrorKind::kUsage, {"REPRISE_FAULT"}, [&] { (void)FaultInjection::parse(text, 0); });
  }
}

}  // namespace
}  // namespace reprise
