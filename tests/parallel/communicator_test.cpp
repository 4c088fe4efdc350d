#include <gtest/gtest.h>

#include "parallel/self_communicator.hpp"
#include "tests/parallel/communicator_cases.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {

namespace {

/// 0 ranks stands for the self communicator.
class CommunicatorTest : public testing::TestWithParam<std::tuple<CommunicatorCase, int>> {};

TEST_P(CommunicatorTest, Holds) {
  const auto& [test, ranks] = GetParam();
  if (ranks == 0) {
    test.run(*make_self_communicator(), test_stream());
  } else {
    run_device_ranks(ranks, [&run = test.run](Communicator& world) { run(world, test_stream()); });
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, CommunicatorTest,
                         testing::Combine(testing::ValuesIn(communicator_cases()), testing::Values(0, 1, 2, 3, 4, 8)),
                         [](const auto& test) {
                           const int ranks = std::get<1>(test.param);
                           return std::get<0>(test.param).name +
                                  (ranks == 0 ? "Self" : "Threads" + std::to_string(ranks));
                         });

}  // namespace

}  // namespace reprise
