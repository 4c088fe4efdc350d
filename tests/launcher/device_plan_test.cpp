#include "launcher/device_plan.hpp"

#include <gtest/gtest.h>

#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

using Ids = std::vector<std::uint64_t>;

/// Ranks of a program with everything built in: so many per host, each of which sees these GPUs.
std::vector<RankGpus> ranks_of(int hosts, int per_host, const Ids& ids) {
  std::vector<RankGpus> ranks;
  for (int host = 0; host < hosts; ++host) {
    for (int r = 0; r < per_host; ++r) ranks.push_back({static_cast<std::uint64_t>(100 + host), true, true, ids});
  }
  return ranks;
}

TEST(DevicePlan, AutoTakesGpusWhereTheyAreSeen) {
  EXPECT_FALSE(plan_devices({{1, false, false, {}}}, {}).gpu);
  EXPECT_FALSE(plan_devices({{1, true, true, {}}}, {}).gpu);
  EXPECT_TRUE(plan_devices({{1, true, true, {7}}}, {}).gpu);
  EXPECT_FALSE(plan_devices({{1, true, true, {7}}}, {"cpu", "auto"}).gpu);
  EXPECT_TRUE(plan_devices({{1, true, false, {7}}}, {"cuda", "auto"}).gpu);
}

TEST(DevicePlan, TheRanksOfAHostTakeItsGpusInTurn) {
  const DevicePlan plan = plan_devices(ranks_of(2, 4, {7, 8, 9, 10}), {});
  EXPECT_EQ(plan.numbers, (std::vector<int>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(plan.transport, DeviceTransport::kNccl);
  const DevicePlan shared = plan_devices(ranks_of(1, 4, {7, 8}), {});
  EXPECT_EQ(shared.numbers, (std::vector<int>{0, 1, 0, 1}));
  EXPECT_EQ(shared.transport, DeviceTransport::kStaged);
}

TEST(DevicePlan, GpusThatALauncherHidFromEachOtherAreNotShared) {
  const std::vector<RankGpus> ranks = {{1, true, true, {7}}, {1, true, true, {8}}};
  const DevicePlan plan = plan_devices(ranks, {"auto", "nccl"});
  EXPECT_EQ(plan.numbers, (std::vector<int>{0, 0})) << "the second rank's only device has number 0, too";
  EXPECT_EQ(plan.transport, DeviceTransport::kNccl);
}

TEST(DevicePlan, OneRankNeedsNoTransport) {
  EXPECT_EQ(plan_devices(ranks_of(1, 1, {7}), {}).transport, DeviceTransport::kHost);
  EXPECT_EQ(plan_devices(ranks_of(1, 1, {7}), {"auto", "self"}).transport, DeviceTransport::kHost);
}

TEST(DevicePlan, OtherTransportsGoByHostMemory) {
  std::vector<RankGpus> ranks = ranks_of(1, 2, {7, 8});
  for (const char* transport : {"mpi", "thread", "staged"}) {
    EXPECT_EQ(plan_devices(ranks, {"auto", transport}).transport, DeviceTransport::kStaged) << transport;
  }
  for (RankGpus& rank : ranks) rank.nccl = false;
  EXPECT_EQ(plan_devices(ranks, {}).transport, DeviceTransport::kStaged);
}

TEST(DevicePlan, WhatIsMissingIsNamed) {
  const auto expect = [](const std::vector<std::string>& parts, const std::vector<RankGpus>& ranks,
                         const DeviceOptions& options) {
    expect_error(ErrorKind::kUsage, parts, [&] { (void)plan_devices(ranks, options); });
  };
  const RankGpus plain{1, false, false, {}}, blind{1, true, true, {}}, seeing{1, true, true, {7}};
  expect({"parallel.device = \"tpu\"", "\"cuda\""}, {seeing}, {"tpu", "auto"});
  expect({"built without CUDA", "cmake --preset cuda"}, {plain}, {"cuda", "auto"});
  expect({"rank 1 sees no GPU", "CUDA_VISIBLE_DEVICES"}, {seeing, blind}, {"cuda", "auto"});
  expect({"rank 1 sees no GPU, others do"}, {seeing, blind}, {"auto", "auto"});
  expect({"\"staged\" moves the memory of GPUs", "no GPU is seen"}, {blind, blind}, {"auto", "staged"});
  expect({"\"nccl\" moves the memory of GPUs"}, {seeing}, {"cpu", "nccl"});
  expect({"ranks 0 and 1 share a GPU", "\"staged\""}, {seeing, seeing}, {"auto", "nccl"});
  RankGpus without_nccl = seeing;
  without_nccl.nccl = false;
  expect({"built without NCCL", "\"staged\""}, {without_nccl}, {"auto", "nccl"});
}

}  // namespace
}  // namespace reprise
