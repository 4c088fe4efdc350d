#include <gtest/gtest.h>

#include "tests/optimizer/optimizer_cases.hpp"
#include "tests/support/mpi_test_main.hpp"

namespace reprise {

namespace {

class MpiOptimizerTest : public testing::TestWithParam<OptimizerCase> {};

TEST_P(MpiOptimizerTest, HoldsOnEveryGrid) {
  run_on_every_grid(GetParam(), mpi_test_world());
}

INSTANTIATE_TEST_SUITE_P(Mpi, MpiOptimizerTest, testing::ValuesIn(optimizer_cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace

}  // namespace reprise
