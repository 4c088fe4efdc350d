#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <limits>

#include "loss/loss.hpp"
#include "tests/loss/head_loss_check.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

/// Every rank of every layout throws Error(kind) with all `parts` from forward, before a collective that could hang.
void expect_forward_error(const HeadProblem& problem, Normalization normalization, ErrorKind kind,
                          const std::vector<std::string>& parts) {
  for (const bool sequence_parallel : {false, true}) {
    std::atomic<int> refused = 0;
    run_device_ranks(3, [&](Communicator& world) {
      HeadRank<float> rank(world, problem, problem.even(3), sequence_parallel);
      const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
      expect_error(kind, parts, [&] {
        static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch()));
      });
      ++refused;
      world.barrier();  // nobody is left waiting in another collective
    });
    EXPECT_EQ(refused, 3);
  }
}

HeadProblem small_problem() {
  return make_head_problem({.rows = 8, .depth = 4, .vocab = 30, .tokens = 6, .tile_tokens = 2, .candidates = 4});
}

TEST(HeadLossErrorsTest, RowOutOfRange) {
  HeadProblem problem = small_problem();
  problem.row.back() = 8;
  for (const Normalization normalization : {Normalization::kTile, Normalization::kFull}) {
    expect_forward_error(problem, normalization, ErrorKind::kData, {"token 5", "row 8", "8 hidden states"});
  }
}

TEST(HeadLossErrorsTest, NegativeRow) {
  HeadProblem problem = small_problem();
  problem.row.front() = -1;
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"token 0", "row -1"});
}

TEST(HeadLossErrorsTest, RowsNotAscending) {
  HeadProblem problem = small_problem();
  problem.row[3] = problem.row[2];
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"token 3", "strictly ascending"});
}

TEST(HeadLossErrorsTest, GoldOutsideTheVocabulary) {
  for (const std::int32_t gold : {30, -1, -99}) {
    HeadProblem problem = small_problem();
    problem.gold[4] = gold;
    const std::string id = "gold id " + std::to_string(gold);
    expect_forward_error(problem, Normalization::kFull, ErrorKind::kData, {"token 4", id, "[0, 30)"});
    expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"token 4", id, "[0, 30)"});
  }
}

TEST(HeadLossErrorsTest, WeightNegativeOrNotFinite) {
  for (const float weight : {-0.5f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    HeadProblem problem = small_problem();
    problem.token_weight[1] = weight;
    expect_forward_error(problem, Normalization::kFull, ErrorKind::kData, {"token 1", "weight"});
  }
}

TEST(HeadLossErrorsTest, CandidateOutsideTheVocabulary) {
  HeadProblem problem = small_problem();
  problem.tiles.ids[static_cast<std::size_t>(problem.tiles.id_begin[2]) - 1] = 30;
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData,
                       {"tile 1", "tokens 2 to 3", "id 30", "[0, 30)"});
}

TEST(HeadLossErrorsTest, CandidatesUnsorted) {
  HeadProblem problem = small_problem();
  const auto first = static_cast<std::size_t>(problem.tiles.id_begin[1]);
  std::swap(problem.tiles.ids[first], problem.tiles.ids[first + 1]);
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"tile 1", "not sorted and unique"});
  problem.tiles.ids[first] = problem.tiles.ids[first + 1];
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"tile 1", "not sorted and unique"});
}

TEST(HeadLossErrorsTest, EmptySet) {
  HeadProblem problem =
      make_head_problem({.rows = 8, .depth = 4, .vocab = 30, .tokens = 6, .tile_tokens = 1, .candidates = 4});
  problem.tiles.id_begin[3] = problem.tiles.id_begin[2];
  expect_forward_error(problem, Normalization::kToken, ErrorKind::kData, {"token 2", "empty"});
}

TEST(HeadLossErrorsTest, GoldMissing) {
  HeadProblem problem = small_problem();
  const auto begin = problem.tiles.ids.begin() + problem.tiles.id_begin[1];
  const auto end = problem.tiles.ids.begin() + problem.tiles.id_begin[2];
  std::int32_t missing = 0;
  while (std::find(begin, end, missing) != end) ++missing;
  problem.gold[3] = missing;
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData,
                       {"tile 1", "token 3", "gold id " + std::to_string(missing), "missing"});
}

TEST(HeadLossErrorsTest, TilesThatDoNotCoverTheTokens) {
  HeadProblem problem = small_problem();
  problem.tiles.token_begin.back() = 5;
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"do not cover", "6 tokens"});
  problem.tiles.clear();
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"0 tiles do not cover"});
  problem = small_problem();
  problem.tiles.token_begin[1] = 0;
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"tile 0 holds the tokens [0, 0)"});
}

TEST(HeadLossErrorsTest, TokenNormalisationOfTilesOfSeveralTokens) {
  expect_forward_error(small_problem(), Normalization::kToken, ErrorKind::kData, {"one set a token"});
}

TEST(HeadLossErrorsTest, NegativesUnsortedOrOutOfRange) {
  HeadProblem problem = small_problem();
  problem.negatives = {3, 2};
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"negatives", "id 2 follows id 3"});
  problem.negatives = {3, 30};
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"negatives", "id 30"});
}

TEST(HeadLossErrorsTest, SizesThatDiffer) {
  HeadProblem problem = small_problem();
  problem.gold.pop_back();
  expect_forward_error(problem, Normalization::kTile, ErrorKind::kData, {"6 rows", "5 golds"});
}

TEST(HeadLossErrorsTest, HiddenStatesNotFinite) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
    for (const Normalization normalization : {Normalization::kTile, Normalization::kFull}) {
      HeadProblem problem = small_problem();
      problem.hidden[static_cast<std::size_t>(problem.row[2] * problem.depth + 3)] = bad;
      expect_forward_error(problem, normalization, ErrorKind::kNonFinite,
                           {"token 2", "row " + std::to_string(problem.row[2]), "NaN or Inf"});
    }
  }
}

// What the host would wait for stays on the device.
TEST(HeadLossErrorsTest, ALaunchedForwardLeavesItsSumsOnTheDevice) {
  for (const Normalization normalization : {Normalization::kTile, Normalization::kFull}) {
    for (const bool is_bad : {false, true}) {
      HeadProblem problem = small_problem();
      if (is_bad) problem.hidden[static_cast<std::size_t>(problem.row[2] * problem.depth)] = NAN;
      run_device_ranks(2, [&](Communicator& world) {
        HeadRank<float> rank(world, problem, problem.even(2), false);
        if (is_bad && rank.stream.is_cpu()) return;  // throws as forward does
        const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
        const auto output =
            loss->launch_forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch());
        const LossSummary summary = to_host(rank.stream, output.summary).front();
        EXPECT_EQ(output.weighted_sum, 0.0);
        EXPECT_EQ(summary.bad_token, is_bad ? 2 : -1);
        if (is_bad) {
          EXPECT_TRUE(std::isnan(summary.weighted_sum));
          return;
        }
        const auto waited = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch());
        EXPECT_EQ(summary.weighted_sum, waited.weighted_sum);
        EXPECT_EQ(output.weight_sum, waited.weight_sum);
      });
    }
  }
}

TEST(HeadLossErrorsTest, ABatchThatNeedsNoGradientOfWHasNone) {
  const HeadProblem problem = small_problem();
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(1), false), other(world, problem, problem.even(1), false);
    const auto loss = make_head_loss<float>(Normalization::kTile, rank.vocab, problem.options);
    LossBatch batch = problem.batch();
    batch.needs_weight_gradient = false;
    static_cast<void>(loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), batch));
    expect_error(ErrorKind::kInternal, {"gradient of W"}, [&] {
      loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
    });
    loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), {});
    static_cast<void>(loss->forward(other.context(), other.hidden_view(), other.weight_view(), problem.batch()));
    loss->backward(other.context(), other.weight_view(), other.d_hidden_view(), other.d_weight_view());
    EXPECT_EQ(rank.d_hidden_values(), other.d_hidden_values());
  });
}

// A row that is not projected may hold anything.
TEST(HeadLossErrorsTest, UnselectedRowsMayHoldAnything) {
  HeadProblem problem = small_problem();
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    if (std::find(problem.row.begin(), problem.row.end(), row) != problem.row.end()) continue;
    problem.hidden[static_cast<std::size_t>(row * problem.depth)] = std::numeric_limits<double>::quiet_NaN();
  }
  check_head_loss<float>(2, problem, Normalization::kTile, false);
  check_head_loss<float>(2, problem, Normalization::kTile, true);
}

// NaN in W reaches the loss and the gradient of the tokens that list the row, so that the step can be skipped.
TEST(HeadLossErrorsTest, WeightsNotFiniteShowInLossAndGradient) {
  for (const Normalization normalization : {Normalization::kTile, Normalization::kFull}) {
    HeadProblem problem = small_problem();
    const std::int32_t row = problem.gold[2];
    problem.weight[static_cast<std::size_t>(row * problem.depth)] = std::numeric_limits<double>::quiet_NaN();
    problem.token_weight.assign(problem.token_weight.size(), 1.0f);
    run_device_ranks(2, [&](Communicator& world) {
      HeadRank<float> rank(world, problem, problem.even(2), false);
      const auto loss = make_head_loss<float>(normalization, rank.vocab, problem.options);
      const auto output = loss->forward(rank.context(), rank.hidden_view(), rank.weight_view(), problem.batch());
      EXPECT_TRUE(std::isnan(to_host(rank.stream, output.token_loss)[2]));
      EXPECT_TRUE(std::isnan(output.weighted_sum));
      loss->backward(rank.context(), rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
      EXPECT_TRUE(std::isnan(rank.d_hidden_values()[static_cast<std::size_t>(problem.row[2] * problem.depth)]));
    });
  }
}

TEST(HeadLossErrorsTest, OptionsByName) {
  const VocabPartition vocab = VocabPartition::even(40, 37, 2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Normalization normalization : {Normalization::kToken, Normalization::kTile, Normalization::kFull}) {
    const auto expect_usage = [&](const std::string& name, const LossOptions& options) {
      expect_error(ErrorKind::kUsage, {name},
                   [&] { static_cast<void>(make_head_loss<float>(normalization, vocab, options)); });
    };
    expect_usage("softcap = -1", {.softcap = -1.0f});
    expect_usage("softcap = nan", {.softcap = nan});
    expect_usage("logit_scale = 0", {.logit_scale = 0.0f});
    expect_usage("logit_scale = nan", {.logit_scale = nan});
  }
}

TEST(HeadLossErrorsTest, ShardsThatDoNotTileTheVocabulary) {
  const std::vector<std::vector<std::int64_t>> all_bounds{{0, 20, 36}, {1, 20, 40}, {0, 30, 20, 40}};
  for (const auto& bounds : all_bounds) {
    expect_error(ErrorKind::kUsage, {"do not tile [0, 37)"}, [&] {
      static_cast<void>(make_head_loss<float>(Normalization::kTile, {bounds, 37}));
    });
  }
}

TEST(HeadLossErrorsTest, ShapesThatDoNotMatch) {
  const HeadProblem problem = small_problem();
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<float> rank(world, problem, problem.even(1), false);
    const auto loss = make_head_loss<float>(Normalization::kTile, rank.vocab);
    expect_error(ErrorKind::kInternal, {"head weight [32, 4]", "33 vocabulary rows"}, [&] {
      static_cast<void>(
          loss->forward(rank.context(), rank.hidden_view(), rank.weight_view().row_range(0, 32), problem.batch()));
    });
  });
}

}  // namespace
}  // namespace reprise
