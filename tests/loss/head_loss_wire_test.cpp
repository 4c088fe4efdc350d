// What the losses send and how much memory they take.
#include <gtest/gtest.h>

#include "loss/loss.hpp"
#include "tests/loss/head_loss_check.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kStatisticsBytes = 12;

class HeadLossWireTest : public testing::TestWithParam<std::int64_t> {};  // candidates a token

TEST_P(HeadLossWireTest, ForwardIsOneAllGatherOfThreeFloatsAToken) {
  const HeadProblem problem = make_head_problem({.rows = 50,
                                                 .depth = 16,
                                                 .vocab = 400,
                                                 .tokens = 33,
                                                 .tile_tokens = 8,
                                                 .candidates = GetParam(),
                                                 .negatives = 9});
  for (const Normalization normalization : {Normalization::kTile, Normalization::kFull}) {
    for (const int tp : {1, 2, 4}) {
      run_device_ranks(tp, [&](Communicator& world) {
        HeadRank<float> rank(world, problem, problem.even(tp), false);
        const auto loss = make_head_loss<float>(normalization, rank.vocab);
        Communicator& group = *rank.groups.tp;
        group.reset_counts();
        static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
        EXPECT_EQ(group.count(Collective::kAllGather).calls, 1);
        EXPECT_EQ(group.count(Collective::kAllGather).bytes, kStatisticsBytes * problem.tokens() * (tp - 1));
        for (const Collective verb : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllToAll,
                                      Collective::kBroadcast, Collective::kBarrier}) {
          EXPECT_EQ(group.count(verb).calls, 0) << name_of(verb);
        }

        group.reset_counts();
        loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
        EXPECT_EQ(group.count(Collective::kAllReduce).calls, 1);
        const std::int64_t buffer = problem.tokens() * problem.depth * 4;
        EXPECT_EQ(group.count(Collective::kAllReduce).bytes, 2 * buffer * (tp - 1) / tp);
        EXPECT_EQ(group.count(Collective::kAllGather).calls, 0);
        EXPECT_EQ(group.count(Collective::kAllToAll).calls, 0);
      });
    }
  }
}

TEST_P(HeadLossWireTest, SequenceParallelismAddsOneCollectiveEachWay) {
  const HeadProblem problem = make_head_problem(
      {.rows = 50, .depth = 16, .vocab = 400, .tokens = 33, .tile_tokens = 8, .candidates = GetParam()});
  constexpr int kRanks = 4;
  run_device_ranks(kRanks, [&](Communicator& world) {
    HeadRank<BFloat16> rank(world, problem, problem.even(kRanks), true);
    const auto loss = make_head_loss<BFloat16>(Normalization::kTile, rank.vocab);
    const std::int64_t own = std::count_if(problem.row.begin(), problem.row.end(), [&](std::int32_t row) {
      return rank.rows.begin <= row && row < rank.rows.end;
    });
    Communicator& group = *rank.groups.tp;
    group.reset_counts();
    static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
    EXPECT_EQ(group.count(Collective::kAllGather).calls, 2);
    EXPECT_EQ(group.count(Collective::kAllGather).bytes,
              (kStatisticsBytes * problem.tokens() + own * problem.depth * 2) * (kRanks - 1));

    group.reset_counts();
    loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
    EXPECT_EQ(group.count(Collective::kAllToAll).calls, 1);
    EXPECT_EQ(group.count(Collective::kAllToAll).bytes, (problem.tokens() - own) * problem.depth * 2);
    EXPECT_EQ(group.count(Collective::kAllReduce).calls, 0);
    EXPECT_EQ(group.count(Collective::kAllGather).calls, 0);
  });
}

INSTANTIATE_TEST_SUITE_P(Candidates, HeadLossWireTest, testing::Values(0, 5, 60));

TEST(HeadLossWireDetailTest, AnUnknownNumberOfRowsCostsOneSmallAllGather) {
  const HeadProblem problem = make_head_problem({});
  run_device_ranks(3, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(3), true);
    const auto loss = make_head_loss<float>(Normalization::kTile, rank.vocab);
    LossBatch batch = problem.batch();
    batch.total_rows = -1;
    rank.groups.tp->reset_counts();
    const auto output = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), batch);
    EXPECT_EQ(rank.groups.tp->count(Collective::kAllGather).calls, 3);
    expect_losses<float>(rank.stream, output, solve_head_problem(problem, Normalization::kTile));
  });
}

/// Arena bytes of forward and backward on one rank.
template <class T>
std::int64_t arena_bytes(const HeadProblem& problem, Normalization normalization) {
  std::int64_t bytes = 0;
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<T> rank(world, problem, problem.even(1), false);
    const auto loss = make_head_loss<T>(normalization, rank.vocab);
    const auto run = [&] {
      static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
      loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
      rank.arena.reset();
    };
    run();
    bytes = rank.arena.high_water_bytes();
    run();
    EXPECT_EQ(rank.arena.high_water_bytes(), bytes) << "a second micro-batch takes more memory";
  });
  return bytes;
}

TEST(HeadLossMemoryTest, NoBufferOfTokensTimesVocabulary) {
  const bool is_cpu = test_stream().is_cpu();
  const std::int64_t vocab = 32768, tokens = is_cpu ? 700 : 150, all_logits = vocab * tokens * 4;
  const HeadProblem tiles = make_head_problem({.rows = tokens,
                                               .depth = 8,
                                               .vocab = vocab,
                                               .tokens = tokens,
                                               .tile_tokens = 8,
                                               .candidates = 20,
                                               .negatives = 64});
  EXPECT_LT(arena_bytes<float>(tiles, Normalization::kTile), all_logits / 12);
  EXPECT_LT(arena_bytes<BFloat16>(tiles, Normalization::kTile), all_logits / 12);
  // A GPU's blocks of the vocabulary are larger than all logits of such a test.
  if (is_cpu) {
    EXPECT_LT(arena_bytes<float>(tiles, Normalization::kFull), all_logits / 16);
  }
}

}  // namespace
}  // namespace reprise
