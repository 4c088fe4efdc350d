#include <gtest/gtest.h>

#include "core/elementwise.hpp"
#include "core/thread_pool.hpp"
#include "loss/loss.hpp"
#include "tests/loss/head_loss_check.hpp"

namespace reprise {
namespace {

constexpr Normalization kAllNormalizations[] = {Normalization::kToken, Normalization::kTile, Normalization::kFull};

/// A problem whose tiles suit the normalisation.
HeadProblem problem_for(Normalization normalization, HeadProblemOptions options = {}) {
  if (normalization == Normalization::kToken) options.tile_tokens = 1;
  if (normalization == Normalization::kFull) options.negatives = 0;
  return make_head_problem(options);
}

struct Layout {
  int tp;
  bool sequence_parallel;
};

class HeadLossShardingTest : public testing::TestWithParam<Layout> {
 protected:
  template <class T>
  static void check(Normalization normalization, const HeadProblemOptions& options) {
    check_head_loss<T>(GetParam().tp, problem_for(normalization, options), normalization, GetParam().sequence_parallel);
  }
};

TEST_P(HeadLossShardingTest, AgreesWithTheOracle) {
  for (const Normalization normalization : kAllNormalizations) check<float>(normalization, {});
}

TEST_P(HeadLossShardingTest, NegativesAgreeWithTheOracle) {
  check<float>(Normalization::kTile, {.negatives = 12});
  check<float>(Normalization::kToken, {.negatives = 40});  // most of the vocabulary, members among them
}

TEST_P(HeadLossShardingTest, SoftcapAndScaleAgreeWithTheOracle) {
  for (const Normalization normalization : kAllNormalizations) {
    check<float>(normalization, {.negatives = 9, .loss = {.logit_scale = 0.75f, .softcap = 4.0f}});
  }
}

TEST_P(HeadLossShardingTest, BFloat16AgreesWithTheOracle) {
  for (const Normalization normalization : kAllNormalizations) {
    check<BFloat16>(normalization, {.negatives = 12, .bfloat16 = true});
  }
}

TEST_P(HeadLossShardingTest, LargeLogitsDoNotOverflow) {
  for (const Normalization normalization : kAllNormalizations) {
    check<float>(normalization, {.depth = 3, .negatives = 5, .spread = 40.0});
  }
}

TEST_P(HeadLossShardingTest, OneTokenOneRowOneColumn) {
  for (const Normalization normalization : kAllNormalizations) {
    check<float>(normalization, {.rows = 1, .depth = 1, .tokens = 1});
  }
}

TEST_P(HeadLossShardingTest, ZeroTokens) {
  for (const Normalization normalization : kAllNormalizations) check<float>(normalization, {.tokens = 0});
  check<float>(Normalization::kTile, {.rows = 0, .tokens = 0, .negatives = 3});
}

TEST_P(HeadLossShardingTest, SetsOfGoldAloneHaveLossZero) {
  const HeadProblem problem = make_head_problem({.tile_tokens = 1, .candidates = 0});
  check_head_loss<float>(GetParam().tp, problem, Normalization::kToken, GetParam().sequence_parallel);
  for (const double loss : solve_head_problem(problem, Normalization::kToken).token_loss) EXPECT_EQ(loss, 0.0);
}

TEST_P(HeadLossShardingTest, IgnoredAndWeightlessTokens) {
  for (const Normalization normalization : kAllNormalizations) {
    HeadProblem problem = problem_for(normalization, {.negatives = 6});
    problem.gold[2] = problem.gold[3] = -100;
    problem.token_weight[3] = 2.0f;
    problem.token_weight[5] = 0.0f;
    check_head_loss<float>(GetParam().tp, problem, normalization, GetParam().sequence_parallel);
    for (std::int32_t& gold : problem.gold) gold = -100;
    check_head_loss<float>(GetParam().tp, problem, normalization, GetParam().sequence_parallel);
  }
}

// Ties: identical rows of W give identical logits.
TEST_P(HeadLossShardingTest, Ties) {
  for (const Normalization normalization : kAllNormalizations) {
    HeadProblem problem = problem_for(normalization);
    for (std::size_t i = 0; i < problem.weight.size(); ++i) {
      problem.weight[i] = problem.weight[i % static_cast<std::size_t>(problem.depth)];
    }
    check_head_loss<float>(GetParam().tp, problem, normalization, GetParam().sequence_parallel);
  }
}

TEST_P(HeadLossShardingTest, TilesOfManySizes) {
  std::vector<std::int64_t> sizes{2, 3, 5, 7, 8, 15, 16, 64, 70, 1000};
  std::int64_t tokens = 139;
  if (!test_stream().is_cpu()) {  // restricted_head_test has the sizes that matter there
    sizes = {3, 70};
    tokens = 76;
  }
  for (const std::int64_t tile_tokens : sizes) {
    check<float>(
        Normalization::kTile,
        {.rows = tokens + 11, .depth = 37, .vocab = 90, .tokens = tokens, .tile_tokens = tile_tokens, .negatives = 7});
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, HeadLossShardingTest,
                         testing::Values(Layout{1, false}, Layout{2, false}, Layout{3, false}, Layout{4, false},
                                         Layout{8, false}, Layout{1, true}, Layout{2, true}, Layout{3, true},
                                         Layout{4, true}, Layout{8, true}),
                         [](const testing::TestParamInfo<Layout>& layout) {
                           return "tp" + std::to_string(layout.param.tp) +
                                  (layout.param.sequence_parallel ? "_sequence" : "");
                         });

TEST(HeadLossTest, UnevenAndEmptyShards) {
  const std::vector<std::vector<std::int64_t>> all_bounds{
      {0, 0, 37, 40}, {0, 1, 2, 40}, {0, 40, 40, 40}, {0, 0, 0, 40}, {0, 20, 37, 40}, {0, 36, 38, 40}, {0, 5, 38, 40}};
  for (const auto& bounds : all_bounds) {
    for (const Normalization normalization : kAllNormalizations) {
      const HeadProblem problem = problem_for(normalization, {.negatives = 10});
      run_device_ranks(3, [&](Communicator& world) {
        check_head_loss<float>(world, problem, normalization, {bounds, problem.vocab}, world.size() == 3);
      });
    }
  }
}

// With every id as a negative none is raised, and the loss is that of the whole vocabulary.
TEST(HeadLossTest, AllIdsAsNegativesGiveTheFullLoss) {
  HeadProblem problem = make_head_problem({.loss = {.softcap = 5.0f}});
  for (std::int32_t id = 0; id < problem.vocab; ++id) problem.negatives.push_back(id);
  const HeadAnswer full = solve_head_problem(problem, Normalization::kFull);
  run_device_ranks(2, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(2), false);
    const auto loss = make_head_loss<float>(Normalization::kTile, rank.vocab, problem.options);
    const auto output = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch());
    expect_losses<float>(rank.stream, output, full);
    loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
    expect_gradients(rank, full);
  });
}

TEST(HeadLossTest, EverySimdLevelAgreesWithTheOracle) {
  const SimdLevel best = simd_level();
  const int levels = test_stream().is_cpu() ? static_cast<int>(best) + 1 : 1;
  for (int level = 0; level < levels; ++level) {
    set_simd_level(static_cast<SimdLevel>(level));
    for (const Normalization normalization : kAllNormalizations) {
      const HeadProblemOptions options{.rows = 60,
                                       .depth = 200,
                                       .tokens = 55,
                                       .tile_tokens = 23,
                                       .candidates = 9,
                                       .negatives = 7,
                                       .spread = 0.3,
                                       .bfloat16 = true,
                                       .loss = {.softcap = 9.0f}};
      check_head_loss<float>(2, problem_for(normalization, options), normalization, false);
      check_head_loss<BFloat16>(2, problem_for(normalization, options), normalization, false);
    }
  }
  set_simd_level(best);
}

/// sum w l of the float32 loss, alone on one rank.
double weighted_sum(const HeadProblem& problem, Normalization normalization) {
  double sum = 0.0;
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(1), false);
    const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
    sum = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()).weighted_sum;
  });
  return sum;
}

TEST(HeadLossTest, GradientsAgreeWithFiniteDifferences) {
  const std::size_t stride =
      test_stream().is_cpu() ? 1 : 11;  // a few coordinates of every kind where a forward is slow
  for (const Normalization normalization : kAllNormalizations) {
    HeadProblem problem = problem_for(normalization, {.rows = 4,
                                                      .depth = 5,
                                                      .vocab = 11,
                                                      .tokens = 3,
                                                      .tile_tokens = 2,
                                                      .candidates = 3,
                                                      .negatives = 4,
                                                      .loss = {.logit_scale = 1.5f, .softcap = 6.0f}});
    run_device_ranks(1, [&](Communicator& world) {
      HeadRank<float> rank(world, problem, problem.even(1), false);
      const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
      static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
      loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
      const std::vector<float> d_hidden = rank.d_hidden_values(), d_weight = rank.d_weight_values();
      const auto difference = [&](double& value) {
        constexpr double kStep = 1e-2;
        const double before = value;
        value = before + kStep;
        const double above = weighted_sum(problem, normalization);
        value = before - kStep;
        const double below = weighted_sum(problem, normalization);
        value = before;
        return (above - below) / (2.0 * kStep);
      };
      for (std::size_t i = 0; i < problem.hidden.size(); i += stride) {
        ASSERT_NEAR(static_cast<double>(d_hidden[i]), difference(problem.hidden[i]), 3e-3) << "hidden " << i;
      }
      for (std::size_t i = 0; i < 55; i += stride) {
        const double gradient = static_cast<double>(d_weight[i] - rank.kBefore);
        ASSERT_NEAR(gradient, difference(problem.weight[i]), 3e-3) << "weight " << i;
      }
    });
  }
}

std::vector<float> bits_of_run(const HeadProblem& problem, Normalization normalization, const Stream& stream) {
  std::vector<float> all;
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(1), false, stream);
    const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
    const auto output = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch());
    loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
    all = to_host(stream, output.token_loss);
    for (const auto& gradient : {rank.d_hidden_values(), rank.d_weight_values()}) {
      all.insert(all.end(), gradient.begin(), gradient.end());
    }
  });
  return all;
}

TEST(HeadLossTest, SameBitsForEveryNumberOfThreads) {
  for (const Normalization normalization : kAllNormalizations) {
    const HeadProblem problem =
        problem_for(normalization, {.rows = 300, .depth = 300, .vocab = 500, .tokens = 290, .negatives = 20});
    const std::vector<float> one = bits_of_run(problem, normalization, Stream(CpuStream{}));
    EXPECT_EQ(one, bits_of_run(problem, normalization, Stream(CpuStream{})));
    for (const int threads : {2, 3}) {
      ThreadPool pool(threads);
      EXPECT_EQ(one, bits_of_run(problem, normalization, Stream(CpuStream{&pool})));
    }
  }
}

TEST(HeadLossTest, FrozenHeadGetsNoGradientAndMicroBatchesAdd) {
  for (const Normalization normalization : kAllNormalizations) {
    const HeadProblem problem = problem_for(normalization, {.negatives = 8});
    const HeadAnswer answer = solve_head_problem(problem, normalization);
    run_device_ranks(2, [&](Communicator& world) {
      HeadRank<float> rank(world, problem, problem.even(2), false);
      const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
      const auto run = [&](MatrixView<float> d_weight) {
        static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
        loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), d_weight);
        rank.arena.reset();
      };
      run({});
      EXPECT_EQ(rank.d_weight_values(),
                std::vector<float>(static_cast<std::size_t>(rank.d_weight.size()), rank.kBefore));
      run(rank.d_weight_view());
      expect_gradients(rank, answer);
      const std::vector<float> once = rank.d_weight_values();
      run(rank.d_weight_view());
      const std::vector<float> twice = rank.d_weight_values();
      for (std::size_t i = 0; i < once.size(); ++i) {
        ASSERT_NEAR(twice[i] - rank.kBefore, 2.0f * (once[i] - rank.kBefore), 1e-4f);
      }
    });
  }
}

}  // namespace
}  // namespace reprise
