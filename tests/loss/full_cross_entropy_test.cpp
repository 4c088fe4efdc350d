#include "loss/full_cross_entropy.hpp"

#include <gtest/gtest.h>

#include "tests/loss/head_loss_check.hpp"
#include "tests/support/expect_error.hpp"

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
  EXPECT_EQ(plan_logit_blocks(100, 1000, {.block_tokens = 30, .block_logits = 600, .min_block_ids = 8}).ids, 20);
}

// Several blocks each way with a short one at the end, kept and computed again, on every sharding.
template <class T>
void check_blocks(const HeadProblem& problem, std::int64_t kept_logits) {
  const LogitBudget budget{.block_tokens = 24, .block_logits = 24 * 32, .min_block_ids = 8, .kept_logits = kept_logits};
  for (const int tp : {1, 2, 3}) {
    for (const bool sequence_parallel : {false, true}) {
      run_device_ranks(tp, [&](Communicator& world) {
        FullCrossEntropy<T> loss(problem.even(tp), problem.options, budget);
        check_head_loss<T>(world, loss, problem, Normalization::kFull, problem.even(tp), sequence_parallel);
      });
    }
  }
}

TEST(FullCrossEntropyTest, SeveralBlocksAgreeWithTheOracle) {
  for (const std::int64_t kept_logits : {0, 1 << 20}) {
    HeadProblem problem =
        make_head_problem({.rows = 40, .depth = 8, .vocab = 77, .tokens = 37, .candidates = 0, .bfloat16 = true});
    check_blocks<float>(problem, kept_logits);
    if (test_stream().is_cpu()) check_blocks<BFloat16>(problem, kept_logits);  // elsewhere with options is enough
    problem.options = {.logit_scale = 0.75f, .softcap = 4.0f};
    problem.gold[3] = problem.gold[4] = -100;
    check_blocks<BFloat16>(problem, kept_logits);
  }
}

TEST(FullCrossEntropyTest, OrdinaryAndEmptyProblems) {
  for (const int tp : {1, 3}) {
    for (const bool sequence_parallel : {false, true}) {
      check_head_loss<float>(tp, make_head_problem({}), Normalization::kFull, sequence_parallel);
      check_head_loss<float>(tp, make_head_problem({.depth = 3, .spread = 40.0}), Normalization::kFull,
                             sequence_parallel);
      check_head_loss<BFloat16>(tp, make_head_problem({.bfloat16 = true}), Normalization::kFull, sequence_parallel);
      check_head_loss<float>(tp, make_head_problem({.tokens = 0}), Normalization::kFull, sequence_parallel);
      check_head_loss<float>(tp, make_head_problem({.vocab = 2, .padded_rows = 0, .candidates = 1}),
                             Normalization::kFull, sequence_parallel);  // fewer ids than ranks
    }
  }
}

TEST(FullCrossEntropyTest, HiddenStatesThatAreNotFiniteAreNamed) {
  HeadProblem problem = make_head_problem({});
  problem.hidden[static_cast<std::size_t>(problem.row[5] * problem.depth + 19)] = std::nan("");
  for (const bool sequence_parallel : {false, true}) {
    run_device_ranks(2, [&](Communicator& world) {
      HeadRank<float> rank(world, problem, problem.even(2), sequence_parallel);
      const auto loss = make_head_loss<float>(Normalization::kFull, rank.vocab);
      const std::string row = "row " + std::to_string(problem.row[5]);
      expect_error(ErrorKind::kNonFinite, {"token 5", row}, [&] {
        static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
      });
    });
  }
}

}  // namespace
}  // namespace reprise
