#include "optimizer/optimizer.hpp"

#include <gtest/gtest.h>

#include "tests/optimizer/training_run.hpp"

namespace reprise {

namespace {

TEST(Optimizer, OneRankFollowsTheOracleInEveryMode) {
  for (const OptimizerOptions& options : option_cases()) {
    const RunSettings settings{.options = options};
    expect_close_to_reference(run_training_on_threads<float>(1, settings), run_reference(settings), name_of(options));
  }
}

struct Layout {
  int tensor, data;
};

class LayoutTest : public testing::TestWithParam<Layout> {};

TEST_P(LayoutTest, ShardingAndStageChangeNothingButRounding) {
  const auto [tensor, data] = GetParam();
  for (const OptimizerOptions& base : option_cases()) {
    RunSettings settings{.options = base, .tensor_size = tensor, .micro_batches = 2};
    const ReferenceRun reference = run_reference(settings);
    for (const int stage : {0, 1, 2}) {
      settings.options.zero_stage = stage;
      expect_close_to_reference(run_training_on_threads<float>(tensor * data, settings), reference,
                                name_of(settings.options));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(TensorByData, LayoutTest,
                         testing::Values(Layout{1, 1}, Layout{2, 1}, Layout{1, 2}, Layout{2, 2}, Layout{1, 3},
                                         Layout{4, 2}),
                         [](const auto& test) {
                           return std::to_string(test.param.tensor) + "x" + std::to_string(test.param.data);
                         });

}  // namespace

}  // namespace reprise
