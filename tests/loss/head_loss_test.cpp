#include <gtest/gtest.h>

#include "loss/loss.hpp"
#include "tests/loss/head_loss_check.hpp"

namespace reprise {
namespace {

struct Layout {
  int tp;
  bool sequence_parallel;
};

class HeadLossShardingTest : public testing::TestWithParam<Layout> {};

TEST_P(HeadLossShardingTest, FullAgreesWithTheOracle) {
  check_head_loss<float>(GetParam().tp, make_head_problem({}), Normalization::kFull, GetParam().sequence_parallel);
}

TEST_P(HeadLossShardingTest, TokenAgreesWithTheOracle) {
  check_head_loss<float>(GetParam().tp, make_head_problem({.tile_tokens = 1}), Normalization::kToken,
                         GetParam().sequence_parallel);
}

TEST_P(HeadLossShardingTest, TileAgreesWithTheOracle) {
  check_head_loss<float>(GetParam().tp, make_head_problem({}), Normalization::kTile, GetParam().sequence_parallel);
}

TEST_P(HeadLossShardingTest, TileWithNegativesAgreesWithTheOracle) {
  check_head_loss<float>(GetParam().tp, make_head_problem({.negatives = 12}), Normalization::kTile,
                         GetParam().sequence_parallel);
}

INSTANTIATE_TEST_SUITE_P(Layouts, HeadLossShardingTest,
                         testing::Values(Layout{1, false}, Layout{2, false}, Layout{3, false}, Layout{4, false},
                                         Layout{8, false}, Layout{1, true}, Layout{2, true}, Layout{3, true},
                                         Layout{4, true}, Layout{8, true}),
                         [](const testing::TestParamInfo<Layout>& layout) {
                           return "tp" + std::to_string(layout.param.tp) +
                                  (layout.param.sequence_parallel ? "_sequence" : "");
                         });

}  // namespace
}  // namespace reprise
