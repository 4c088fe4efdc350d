#include "loss/full_cross_entropy.hpp"

#include <gtest/gtest.h>

#include "tests/loss/head_loss_check.hpp"

namespace reprise {
namespace {

TEST(FullCrossEntropyTest, PlansBlocksWithinTheBudget) {
  const LogitBlocks kept = plan_logit_blocks(4096, 4096);
  EXPECT_TRUE(kept.kept);
  const LogitBlocks streamed = plan_logit_blocks(4096, 128256);
  EXPECT_FALSE(streamed.kept);
  EXPECT_EQ(streamed.tokens, 1024);
  EXPECT_EQ(streamed.ids, 1024);
  EXPECT_EQ(plan_logit_blocks(1, 100).ids, 100);
  EXPECT_EQ(plan_logit_blocks(0, 0).ids, 1);
}

// Enough tokens and ids for several blocks each way, kept and computed again.
TEST(FullCrossEntropyTest, SeveralBlocksAgreeWithTheOracle) {
  const HeadProblem problem =
      make_head_problem({.rows = 1100, .depth = 8, .vocab = 2100, .tokens = 1050, .candidates = 0});
  check_head_loss<float>(1, problem, Normalization::kFull, false);
}

}  // namespace
}  // namespace reprise
