#include "parallel/nccl_communicator.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "core/transfer.hpp"
#include "parallel/self_communicator.hpp"
#include "tests/parallel/communicator_cases.hpp"
#include "tests/parallel/nccl_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

/// As far as the GPUs of this machine go.
std::vector<int> rank_counts() {
  std::vector<int> counts;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    if (ranks <= num_cuda_devices()) counts.push_back(ranks);
  }
  return counts;
}
int most_ranks(int wanted) {
  return std::min(wanted, num_cuda_devices());
}

class NcclCommunicatorTest : public testing::TestWithParam<std::tuple<CommunicatorCase, int>> {};

TEST_P(NcclCommunicatorTest, Holds) {
  const auto& [test, ranks] = GetParam();
  run_nccl_ranks(ranks, {}, test.run);
}

INSTANTIATE_TEST_SUITE_P(Cases, NcclCommunicatorTest,
                         testing::Combine(testing::ValuesIn(communicator_cases()), testing::ValuesIn(rank_counts())),
                         [](const auto& test) {
                           return std::get<0>(test.param).name + "Ranks" + std::to_string(std::get<1>(test.param));
                         });

class NcclCaseTest : public testing::TestWithParam<CommunicatorCase> {};

// Sums longer than the scratch go in rounds, which must not show.
TEST_P(NcclCaseTest, HoldsInRoundsOfSixThousandBytes) {
  run_nccl_ranks(most_ranks(3), {.scratch_bytes = 6000}, GetParam().run);
}
TEST_P(NcclCaseTest, HoldsForOneRankThatUsesNccl) {
  run_nccl_ranks(1, {.copies_alone = false}, GetParam().run);
}
// Host memory goes over the bootstrap.
TEST_P(NcclCaseTest, HoldsOnACpuStream) {
  run_nccl_ranks(most_ranks(3), {},
                 [](Communicator& world, const Stream&) { GetParam().run(world, Stream(CpuStream{})); });
}

INSTANTIATE_TEST_SUITE_P(Cases, NcclCaseTest, testing::ValuesIn(communicator_cases()),
                         [](const auto& test) { return test.param.name; });

// Their order is NCCL's, so floats agree to rounding; integers are exact.
TEST(NcclCommunicator, NativeSumsAgreeToRounding) {
  run_nccl_ranks(most_ranks(4), {.native_sums = true}, [](Communicator& world, const Stream& stream) {
    const int ranks = world.size();
    const auto value = [](int rank, std::int64_t i) { return 1.0f / static_cast<float>(3 * rank + i + 1); };
    for (const bool even : {true, false}) {
      std::vector<std::int64_t> counts;
      for (int r = 0; r < ranks; ++r) counts.push_back(even ? 50 : (r == 1 ? 0 : 10 * r + 1));
      const auto total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
      std::vector<float> mine, expected;
      for (std::int64_t i = 0; i < total; ++i) {
        mine.push_back(value(world.rank(), i));
        float sum = 0.0f;
        for (int r = 0; r < ranks; ++r) sum += value(r, i);
        expected.push_back(sum);
      }
      auto buffer = to_device(stream, mine);
      const auto begin = std::accumulate(counts.begin(), counts.begin() + world.rank(), std::int64_t{0});
      const auto own = buffer.view().slice(begin, counts[static_cast<std::size_t>(world.rank())]);
      world.reduce_scatter<float>(stream, buffer.view(), own, counts);
      const auto part = to_host(stream, own);
      for (std::size_t i = 0; i < part.size(); ++i) {
        EXPECT_NEAR(part[i], expected[static_cast<std::size_t>(begin) + i], 1e-6f * static_cast<float>(ranks));
      }
      auto whole = to_device(stream, mine);
      world.all_reduce<float>(stream, whole.view());
      const auto sums = to_host(stream, whole.view());
      for (std::size_t i = 0; i < sums.size(); ++i) {
        EXPECT_NEAR(sums[i], expected[i], 1e-6f * static_cast<float>(ranks));
      }
    }
    auto integers = to_device(stream, std::vector<std::int64_t>{world.rank(), -7});
    world.all_reduce<std::int64_t>(stream, integers.view());
    EXPECT_EQ(to_host(stream, integers.view()), (std::vector<std::int64_t>{ranks * (ranks - 1) / 2, -7 * ranks}));
  });
}

// Two streams use one group: its collectives keep their order, also where the scratch grows in between.
TEST(NcclCommunicator, StreamsTakeTurns) {
  run_nccl_ranks(most_ranks(3), {}, [](Communicator& world, const Stream& stream) {
    const CudaQueue other_queue(world.rank(), CudaQueue::Priority::kHigh);
    const Stream other(other_queue.stream());
    const float factor = static_cast<float>(world.size());
    {
      const auto part = world.split(0, world.rank(), "part");
      std::vector<Buffer<float>> buffers;
      for (const std::int64_t count : {100, 400000, 50000, 700000}) {
        const Stream& used = buffers.size() % 2 == 0 ? stream : other;
        buffers.push_back(to_device(used, std::vector<float>(static_cast<std::size_t>(count), 1.5f)));
        part->all_reduce<float>(used, buffers.back().view());
      }
      synchronize(other);
      for (const auto& buffer : buffers) {
        const auto sums = to_host(stream, buffer.view());
        EXPECT_EQ(sums, std::vector<float>(sums.size(), 1.5f * factor));
      }
    }
  });
}

TEST(NcclCommunicator, ACpuStreamIsRefused) {
  expect_error(ErrorKind::kUsage, {"NCCL", "computes on the CPU"},
               [] { static_cast<void>(make_nccl_communicator(make_self_communicator(), Stream(CpuStream{}))); });
  EXPECT_TRUE(nccl_version().starts_with("2."));
}

}  // namespace

}  // namespace reprise
