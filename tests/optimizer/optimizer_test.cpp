#include "optimizer/optimizer.hpp"

#include <gtest/gtest.h>

#include "tests/optimizer/optimizer_cases.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {

namespace {

class OptimizerTest : public testing::TestWithParam<std::tuple<OptimizerCase, int>> {};

TEST_P(OptimizerTest, HoldsOnEveryGrid) {
  const auto& [test, ranks] = GetParam();
  run_device_ranks(ranks, [&](Communicator& world) { run_on_every_grid(test, world); });
}

INSTANTIATE_TEST_SUITE_P(Threads, OptimizerTest,
                         testing::Combine(testing::ValuesIn(optimizer_cases()), testing::Values(1, 2, 3, 4, 8)),
                         [](const auto& test) {
                           return std::get<0>(test.param).name + "Ranks" + std::to_string(std::get<1>(test.param));
                         });

}  // namespace

}  // namespace reprise
