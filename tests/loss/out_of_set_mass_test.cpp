#include <gtest/gtest.h>

#include <cmath>

#include "loss/loss.hpp"
#include "tests/loss/head_loss_check.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

/// Probability outside the token's tile, in double.
double outside_mass(const HeadProblem& problem, std::int64_t token) {
  std::size_t tile = 0;
  while (problem.tiles.token_begin[tile + 1] <= token) ++tile;
  const auto begin = problem.tiles.ids.begin() + problem.tiles.id_begin[tile];
  const auto end = problem.tiles.ids.begin() + problem.tiles.id_begin[tile + 1];
  const std::int64_t row = problem.row[static_cast<std::size_t>(token)];
  double inside = 0.0, outside = 0.0;
  for (std::int64_t id = 0; id < problem.vocab; ++id) {
    double x = 0.0;
    for (std::int64_t i = 0; i < problem.depth; ++i) {
      x += problem.hidden[static_cast<std::size_t>(row * problem.depth + i)] *
           problem.weight[static_cast<std::size_t>(id * problem.depth + i)];
    }
    x *= static_cast<double>(problem.options.logit_scale);
    const double cap = static_cast<double>(problem.options.softcap);
    (std::find(begin, end, id) != end ? inside : outside) += std::exp(cap > 0.0 ? cap * std::tanh(x / cap) : x);
  }
  return outside / (inside + outside);
}

template <class T>
void check_mass(int tp, bool sequence_parallel, const HeadProblem& problem, std::int64_t max_tokens) {
  double want = 0.0;
  const std::int64_t tokens = std::min(max_tokens, problem.tokens());
  for (std::int64_t t = 0; t < tokens; ++t) want += outside_mass(problem, t);
  run_device_ranks(tp, [&](Communicator& world) {
    HeadRank<T> rank(world, problem, problem.even(tp), sequence_parallel);
    const auto [mass, count] = out_of_set_mass<T>(rank.context(), rank.hidden_view(), rank.weight_view(),
                                                  problem.batch(), rank.vocab, problem.options, max_tokens);
    EXPECT_NEAR(mass, want, 2e-5 * (1.0 + want));
    EXPECT_EQ(count, static_cast<double>(tokens));
  });
}

TEST(OutOfSetMassTest, AgreesWithTheOracleForEverySharding) {
  const HeadProblem problem = make_head_problem({.bfloat16 = true, .loss = {.logit_scale = 0.5f, .softcap = 8.0f}});
  for (const int tp : {1, 2, 3, 4, 8}) {
    for (const bool sequence_parallel : {false, true}) {
      check_mass<float>(tp, sequence_parallel, problem, 100);
      if (tp > 3 && !test_stream().is_cpu()) continue;  // many ranks share one slow device
      check_mass<float>(tp, sequence_parallel, problem, 4);
      check_mass<BFloat16>(tp, sequence_parallel, problem, 5);
    }
  }
}

TEST(OutOfSetMassTest, WholeVocabularyAsSetLeavesNothing) {
  HeadProblem problem = make_head_problem({.vocab = 6, .tokens = 2, .tile_tokens = 2, .candidates = 0});
  problem.tiles.ids = {0, 1, 2, 3, 4, 5};
  problem.tiles.id_begin = {0, 6};
  check_mass<float>(3, false, problem, 2);
  EXPECT_EQ(outside_mass(problem, 0), 0.0);
}

TEST(OutOfSetMassTest, NoTokensAndNoRows) {
  check_mass<float>(2, true, make_head_problem({.tokens = 0}), 5);
  check_mass<float>(2, false, make_head_problem({}), 0);
}

// A mass far below float32's distance to 1 still comes out, because it is summed by itself.
TEST(OutOfSetMassTest, SmallMassKeepsItsDigits) {
  HeadProblem problem = make_head_problem({.rows = 1, .depth = 1, .vocab = 4, .tokens = 1, .candidates = 0});
  problem.hidden = {1.0};
  problem.weight.assign(problem.weight.size(), 0.0);
  problem.weight[static_cast<std::size_t>(problem.gold[0])] = 30.0;
  run_device_ranks(2, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(2), false);
    const auto [mass, count] = out_of_set_mass<float>(rank.context(), rank.hidden_view(), rank.weight_view(),
                                                      problem.batch(), rank.vocab, problem.options, 1);
    const double want = 3.0 / (3.0 + std::exp(30.0));
    EXPECT_NEAR(mass / want, 1.0, 1e-5);
    EXPECT_EQ(count, 1.0);
  });
}

TEST(OutOfSetMassTest, RefusesABatchWithoutCandidates) {
  HeadProblem problem = make_head_problem({});
  problem.tiles.clear();
  run_device_ranks(2, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(2), false);
    expect_error(ErrorKind::kData, {"do not cover"}, [&] {
      static_cast<void>(out_of_set_mass<float>(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch(),
                                               rank.vocab, problem.options, 1));
    });
  });
}

}  // namespace
}  // namespace reprise
