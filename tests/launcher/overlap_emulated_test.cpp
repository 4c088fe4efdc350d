// What only the emulated device can show: NCCL between several of them, in every order of blocks and streams, and what
// was asked for in which order.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "tests/launcher/overlap_run.hpp"
#include "tests/launcher/step_oracle.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/settings.hpp"
#include "tests/support/cuda_emulation/work_log.hpp"

namespace reprise {
namespace {

using cuda_emulation::ScopedSettings;
using cuda_emulation::Work;

/// As many devices as ranks, so that NCCL carries what they exchange.
cuda_emulation::Settings with_devices(const std::string& text, int devices) {
  cuda_emulation::Settings settings = cuda_emulation::parse_settings(text);
  settings.num_devices = devices;
  return settings;
}

template <class T>
void expect_same_bits_in_every_order(const OverlapFixture& fixture, int tensor, int data) {
  const auto alone = run_with_traffic<T>(fixture.config, {tensor, data, false}, 3);
  for (const char* order : {"ascending", "descending,late", "shuffled=3,late"}) {
    const ScopedSettings scoped(with_devices(order, tensor * data));
    const auto nccl = run_with_traffic<T>(fixture.config, {tensor, data, true}, 3);
    for (std::size_t r = 0; r < alone.size(); ++r) EXPECT_TRUE(nccl[r] == alone[r]) << order << ", rank " << r;
  }
}

TEST(EmulatedOverlap, NcclInEveryOrderGivesTheBitsOfStagedTrafficWithoutIt) {
  for (const int zero_stage : {0, 1, 2}) {
    OverlapFixture fixture;
    fixture.config.optimizer.zero_stage = zero_stage;
    fixture.config.parallel.sequence_parallel = zero_stage == 1;
    SCOPED_TRACE(fmt::format("zero {}", zero_stage));
    expect_same_bits_in_every_order<float>(fixture, 2, 2);
  }
}

TEST(EmulatedOverlap, MastersOfBFloat16LikeWise) {
  const OverlapFixture fixture;
  expect_same_bits_in_every_order<BFloat16>(fixture, 1, 2);
}

/// The places in the log of kernels (or ranges) with this name.
std::vector<std::size_t> places_of(const std::vector<Work>& log, const std::string& name) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < log.size(); ++i) {
    if (log[i].name == name) places.push_back(i);
  }
  return places;
}

TEST(EmulatedOverlap, ReductionsAreAskedForDuringBackwardAndAwaitedBucketByBucketInForward) {
  const ScopedSettings scoped(with_devices("late", 2));
  const OverlapFixture fixture;
  run_ranks(2, [&](Communicator& world) {
    SmallBuckets<float> rank(world, fixture.config, {1, 2, true});
    static_cast<void>(rank.trainer->step(rank.data->prepare(0), 1e-2, false));
    const auto prepared = rank.data->prepare(1);
    const cuda_emulation::WorkLog log;
    static_cast<void>(rank.trainer->step(prepared, 1e-2, false));
    const std::vector<Work>& work = log.work();

    const void* const main = rank.session.stream().cuda().handle;
    const void* const side = rank.session.communication().stream.cuda().handle;
    std::vector<std::size_t> sums;
    for (const std::size_t i : places_of(work, "reduce_in_rank_order")) {
      if (work[i].stream == side) sums.push_back(i);
    }
    const auto layers = places_of(work, "layer backward");
    const auto last_layer = layers.back(), embedding = places_of(work, "embedding backward").back();
    const auto before = [&](std::size_t place) {
      return std::count_if(sums.begin(), sums.end(), [&](std::size_t i) { return i < place; });
    };
    EXPECT_GE(before(last_layer), 3) << "of " << sums.size();  // buckets of the last layer, the head, the norm
    EXPECT_GT(before(embedding), before(last_layer));
    EXPECT_LT(before(embedding), std::ssize(sums)) << "the embedding's own bucket";

    // The first forward waits where it needs parameters, again and again, with kernels between.
    const std::size_t loss = places_of(work, "loss").front();
    int waits = 0;
    bool is_after_kernel = true;
    for (std::size_t i = 0; i < loss; ++i) {
      if (work[i].stream != main) continue;
      if (work[i].name == "wait") {
        waits += is_after_kernel ? 1 : 0;
        is_after_kernel = false;
      } else {
        is_after_kernel = true;
      }
    }
    EXPECT_GE(waits, 4) << "embedding, two layers, norm and head";
  });
}

/// Waits of the host and allocations of each step.
struct StepCounts {
  std::int64_t waits = 0, allocations = 0;
};

std::vector<StepCounts> count_steps(const RunConfig& config, const OverlapLayout& layout) {
  std::vector<StepCounts> counts;
  run_ranks(layout.tensor * layout.data, [&](Communicator& world) {
    SmallBuckets<float> rank(world, config, layout);
    for (int i = 0; i < 6; ++i) {
      const auto prepared = rank.data->prepare(i);
      world.barrier();
      const auto waits = cuda_emulation::host_waits();
      const auto allocations = static_cast<std::int64_t>(cuda_emulation::device_allocations());
      static_cast<void>(rank.trainer->step(prepared, 1e-2, false));
      const auto waited = cuda_emulation::host_waits() - waits;
      world.barrier();
      if (world.rank() == 0) {
        counts.push_back({waited, static_cast<std::int64_t>(cuda_emulation::device_allocations()) - allocations});
      }
      world.barrier();
    }
  });
  return counts;
}

TEST(EmulatedOverlap, TheHostWaitsOnceAStepAndAllocatesNothing) {
  OverlapFixture fixture;
  fixture.config.replay.store = fixture.folder / "store";
  fixture.config.replay.normalization = "tile";
  fixture.config.replay.tile_tokens = 3;
  fixture.config.replay.negatives = 5;
  fixture.config.train.probe_every = 0;
  make_store(fixture);
  for (const auto& layout : {OverlapLayout{1, 1}, OverlapLayout{2, 2}}) {
    SCOPED_TRACE(fmt::format("tensor {} x data {}", layout.tensor, layout.data));
    for (const char* normalization : {"tile", "full"}) {
      fixture.config.replay.normalization = normalization;
      const ScopedSettings scoped(with_devices("late", layout.tensor * layout.data));
      const auto counts = count_steps(fixture.config, layout);
      std::int64_t allocations = 0;
      for (std::size_t i = 2; i < counts.size(); ++i) {
        EXPECT_EQ(counts[i].waits, 1) << normalization << ", step " << i << ": for the optimizer's decision alone";
        if (layout.data == 1) {
          EXPECT_EQ(counts[i].allocations, 0) << normalization << ", step " << i;
        }
        allocations += counts[i].allocations;
      }
      // With NCCL streams go on by themselves, and a host may be further ahead than ever: a block more for each of its
      // micro-batches at most.
      EXPECT_LE(allocations, 2 * layout.tensor * layout.data) << normalization;
    }
  }
}

}  // namespace
}  // namespace reprise
