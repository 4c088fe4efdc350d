#include "parallel/staged_communicator.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "parallel/process_groups.hpp"
#include "tests/parallel/communicator_cases.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

class StagedCommunicatorTest : public testing::TestWithParam<CommunicatorCase> {};

// Buffers longer than the staging memory go in rounds, which must not show.
TEST_P(StagedCommunicatorTest, HoldsInRoundsOfTenThousandBytes) {
  run_device_ranks(3, [](Communicator& world) { GetParam().run(world, test_stream()); }, {.bytes = 10000});
}
// Host memory goes to the transport itself.
TEST_P(StagedCommunicatorTest, HoldsOnACpuStream) {
  run_device_ranks(3, [](Communicator& world) { GetParam().run(world, Stream(CpuStream{})); });
}

INSTANTIATE_TEST_SUITE_P(Cases, StagedCommunicatorTest, testing::ValuesIn(communicator_cases()),
                         [](const auto& test) { return test.param.name; });

TEST(StagedCommunicator, ThreadsOfTheHostDoNotChangeTheSum) {
  const std::int64_t count = 200000;
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);  // rank 0's alone: a pool has one user
    std::vector<float> result;
    run_ranks(2, [&](Communicator& inner) {
      const auto world = make_staged_communicator(inner, {.host = {inner.rank() == 0 ? &pool : nullptr}});
      std::vector<float> values(static_cast<std::size_t>(count));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = 1.0f / static_cast<float>(i + 1 + static_cast<std::size_t>(world->rank()));
      }
      const auto buffer = to_device(values);
      auto sums = to_device(values);
      world->all_reduce<float>(test_stream(), sums.view());
      if (world->rank() == 0) result = to_host(sums);
      EXPECT_EQ(to_host(buffer), values);
    });
    results.push_back(result);
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(StagedCommunicator, FailuresNameGroupVerbAndRank) {
  run_device_ranks(2, [](Communicator& world) {
    const auto groups = ProcessGroups::make(world, 2);
    Buffer<float> values(test_stream(), world.rank() == 1 ? 5 : 4, "values");
    expect_error(ErrorKind::kCommunication,
                 {"[tp]", "rank " + std::to_string(world.rank()) + " in all_reduce", "rank 0 brings 4 elements"},
                 [&] { groups.tp->all_reduce<float>(test_stream(), values.view()); });
    world.barrier();
  });
}

TEST(StagedCommunicator, AbortReachesPeersThatWait) {
  expect_error(ErrorKind::kCommunication, {"[world]", "in all_gather", "world rank 1 aborted", "exit code 6"}, [] {
    run_device_ranks(2, [](Communicator& world) {
      if (world.rank() == 1) {
        world.abort(6);
        return;
      }
      const Buffer<float> input(test_stream(), 3, "input");
      Buffer<float> output(test_stream(), 6, "output");
      world.all_gather<float>(test_stream(), input.view(), output.view());
    });
  });
}

}  // namespace

}  // namespace reprise
