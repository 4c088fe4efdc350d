#include "launcher/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>

#include "core/random.hpp"
#include "parallel/process_groups.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

/// The distribution that a rule leaves of one row, and the draw from it, in float64.
struct Oracle {
  std::vector<std::int32_t> line;  // ids by logit falling, then by id rising, of the nucleus
  std::vector<double> bounds;      // of the line: cumulated share of the nucleus

  Oracle(const std::vector<float>& logits, const SamplingRule& rule) {
    line.resize(logits.size());
    std::iota(line.begin(), line.end(), 0);
    const auto logit = [&](std::int32_t id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };
    std::stable_sort(line.begin(), line.end(), [&](std::int32_t a, std::int32_t b) { return logit(a) > logit(b); });
    if (rule.top_k > 0) line.resize(std::min(line.size(), static_cast<std::size_t>(rule.top_k)));
    std::vector<double> weights;
    double total = 0.0;
    for (const std::int32_t id : line) {
      weights.push_back(std::exp((logit(id) - logit(line[0])) / rule.temperature));
      total += weights.back();
    }
    double sum = 0.0;
    for (std::size_t i = 0; i < line.size(); ++i) {
      sum += weights[i];
      bounds.push_back(sum);
      if (sum / total < rule.top_p - 1e-12) continue;
      line.resize(i + 1);
      break;
    }
    for (double& bound : bounds) bound /= sum;
  }

  [[nodiscard]] std::int32_t draw(double uniform) const {
    const auto above = std::upper_bound(bounds.begin(), bounds.end(), uniform);
    return line[std::min(line.size() - 1, static_cast<std::size_t>(above - bounds.begin()))];
  }
  /// No bound is so near that rounding could decide.
  [[nodiscard]] bool is_clear(double uniform, double distance) const {
    return std::none_of(bounds.begin(), bounds.end(),
                        [&](double bound) { return std::abs(bound - uniform) < distance; });
  }
};

std::vector<float> random_row(std::uint64_t seed, std::int64_t size, double deviation) {
  std::vector<float> row;
  for (std::int64_t i = 0; i < size; ++i) {
    row.push_back(static_cast<float>(deviation * random_normal(seed, static_cast<std::uint64_t>(i))));
  }
  return row;
}

struct Chosen {
  std::vector<NextToken> tokens;
  CollectiveCount gathers;
};

/// choose_tokens of rows that are cut at `bounds`, on as many ranks.
Chosen choose(const std::vector<std::vector<float>>& rows, const std::vector<std::int64_t>& bounds,
              const SamplingRule& rule, const std::vector<DrawPlace>& places, bool log_probs = false) {
  Chosen chosen;
  std::mutex mutex;
  const VocabPartition vocab{bounds, std::ssize(rows[0])};
  run_device_ranks(vocab.tp_size(), [&](Communicator& world) {
    const ProcessGroups groups = ProcessGroups::make(world, vocab.tp_size());
    Arena arena(test_stream());
    const Context context{test_stream(), groups, arena, false};
    const Range ids = vocab.ids(groups.tp_rank());
    std::vector<float> own;
    for (const auto& row : rows) own.insert(own.end(), row.begin() + ids.begin, row.begin() + ids.end);
    auto logits = to_device(test_stream(), own);
    groups.tp->reset_counts();
    const auto tokens = choose_tokens(context, Stream{CpuStream{}}, {logits.view().data, std::ssize(rows), ids.size()},
                                      vocab, rule, places, log_probs);
    const std::lock_guard lock(mutex);
    for (std::size_t i = 0; i < chosen.tokens.size(); ++i) EXPECT_EQ(tokens[i].id, chosen.tokens[i].id);
    chosen = Chosen{tokens, groups.tp->count(Collective::kAllGather)};
  });
  return chosen;
}

std::vector<DrawPlace> some_places(std::size_t count) {
  std::vector<DrawPlace> places;
  for (std::uint64_t i = 0; i < count; ++i) places.push_back({i, i % 3, 5 + i % 7});
  return places;
}

/// Draws of rows are the oracle's, whatever the cut of the vocabulary.
void expect_oracle(std::int64_t vocab_size, double deviation, const SamplingRule& rule, std::size_t rows,
                   const std::vector<std::vector<std::int64_t>>& cuts) {
  std::vector<std::vector<float>> logits;
  for (std::uint64_t i = 0; i < rows; ++i) logits.push_back(random_row(i, vocab_size, deviation));
  const auto places = some_places(rows);
  std::size_t clear = 0;
  for (const auto& bounds : cuts) {
    const Chosen chosen = choose(logits, bounds, rule, places);
    ASSERT_EQ(chosen.tokens.size(), rows);
    for (std::size_t i = 0; i < rows; ++i) {
      const Oracle oracle(logits[i], rule);
      const double uniform = uniform_draw(rule.seed, places[i]);
      if (!oracle.is_clear(uniform, 1e-6)) continue;
      ++clear;
      EXPECT_EQ(chosen.tokens[i].id, oracle.draw(uniform))
          << "row " << i << " on " << bounds.size() - 1 << " ranks, T " << rule.temperature << ", top_k " << rule.top_k
          << ", top_p " << rule.top_p;
    }
  }
  EXPECT_GE(clear, rows * cuts.size() * 9 / 10);
}

TEST(Sampler, DrawsWhatTheOracleDrawsForEveryRuleAndCutOfTheVocabulary) {
  const std::vector<std::vector<std::int64_t>> cuts = {{0, 90}, {0, 50, 90}, {0, 1, 1, 70, 90}};
  for (const double temperature : {0.5, 1.0, 1.7}) {
    for (const std::int64_t top_k : {0, 1, 7, 200}) {
      for (const double top_p : {1.0, 0.9, 0.3}) {
        expect_oracle(90, 2.0, {temperature, top_k, top_p, 3}, 25, cuts);
      }
    }
  }
}

TEST(Sampler, FlatDistributionsNeedMoreCandidatesThanTheFirstRoundHas) {
  expect_oracle(3000, 0.1, {1.0, 0, 1.0, 4}, 12, {{0, 3000}, {0, 1000, 3000}});
  expect_oracle(3000, 0.1, {1.0, 0, 0.95, 4}, 12, {{0, 3000}, {0, 1000, 3000}});
  expect_oracle(3000, 0.1, {1.0, 1500, 0.95, 4}, 12, {{0, 3000}, {0, 1000, 3000}});
  expect_oracle(9000, 0.1, {1.0, 0, 0.99, 4}, 4, {{0, 9000}, {0, 4300, 9000}});
  expect_oracle(9000, 0.1, {1.0, 5000, 1.0, 4}, 4, {{0, 4300, 9000}});
}

TEST(Sampler, TheSharesOfAllDrawsAreTheProbabilities) {
  // Every draw of an even grid: shares are exact to the grid's width, here through the decision alone.
  const std::vector<float> logits = random_row(9, 60, 1.5);
  const SamplingRule rule{0.8, 20, 0.85, 1};
  const Oracle oracle(logits, rule);
  std::vector<Candidate> sorted;
  ShardOfRow shard;
  shard.statistics.max = *std::max_element(logits.begin(), logits.end()) / 0.8f;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sorted.push_back(make_candidate(logits[i] / 0.8f, static_cast<std::uint32_t>(i)));
    shard.statistics.sum_exp +=
        std::exp(static_cast<double>(logits[i] / 0.8f) - reference_exponent(shard.statistics.max) * std::log(2.0));
  }
  std::sort(sorted.begin(), sorted.end());
  shard.sorted = sorted;
  constexpr int kGrid = 20000;
  std::vector<double> counts(logits.size(), 0.0);
  for (int i = 0; i < kGrid; ++i) {
    const auto token = draw_token(std::span(&shard, 1), 60, 60, rule, (i + 0.5) / kGrid);
    ASSERT_TRUE(token.has_value());
    counts[id_of(*token)] += 1.0 / kGrid;
  }
  double below = 0.0;
  for (std::size_t i = 0; i < oracle.line.size(); ++i) {
    EXPECT_NEAR(counts[static_cast<std::size_t>(oracle.line[i])], oracle.bounds[i] - below, 2.0 / kGrid);
    below = oracle.bounds[i];
  }
  EXPECT_LT(oracle.line.size(), 20u);
}

TEST(Sampler, TheNucleusIsTheSmallestAndTakesTheSmallerIdsOfEquals) {
  const std::vector<float> equal(10, 0.25f);
  std::vector<std::vector<float>> rows(150, equal);
  for (const auto& bounds : {std::vector<std::int64_t>{0, 10}, {0, 3, 10}}) {
    std::vector<int> seen(10, 0);
    for (const NextToken& token : choose(rows, bounds, {1.0, 0, 0.4, 1}, some_places(150)).tokens) {
      ++seen[static_cast<std::size_t>(token.id)];
    }
    for (std::size_t id = 0; id < 10; ++id) EXPECT_EQ(seen[id] > 0, id < 4) << id;
    for (const NextToken& token : choose(rows, bounds, {0.0, 0, 1.0, 1}, some_places(150)).tokens) {
      EXPECT_EQ(token.id, 0);
    }
  }
}

TEST(Sampler, DrawsAreUniformAndDifferByPromptSampleAndPosition) {
  constexpr int kBins = 20, kDraws = 20000;
  for (int which = 0; which < 4; ++which) {
    std::vector<double> counts(kBins, 0.0);
    for (std::uint64_t i = 0; i < kDraws; ++i) {
      const std::uint64_t seed = which == 3 ? i : 7;
      const DrawPlace place{which == 0 ? i : 3, which == 1 ? i : 0, which == 2 ? i : 11};
      counts[static_cast<std::size_t>(kBins * uniform_draw(seed, place))] += 1.0;
    }
    double chi_square = 0.0;
    for (const double count : counts) {
      const double expected = static_cast<double>(kDraws) / kBins;
      chi_square += (count - expected) * (count - expected) / expected;
    }
    EXPECT_LT(chi_square, 43.8) << which;  // 19 degrees of freedom, one in a thousand
  }
}

TEST(Sampler, LogProbabilitiesAreTheModelsOwnWhateverTheRule) {
  std::vector<std::vector<float>> rows;
  for (std::uint64_t i = 0; i < 6; ++i) rows.push_back(random_row(i, 70, 3.0));
  for (const SamplingRule& rule : {SamplingRule{0.0, 0, 1.0, 1}, SamplingRule{0.7, 5, 0.9, 1}}) {
    for (const auto& bounds : {std::vector<std::int64_t>{0, 70}, {0, 0, 30, 70}}) {
      const auto tokens = choose(rows, bounds, rule, some_places(6), true).tokens;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        double sum = 0.0;
        for (const float logit : rows[i]) sum += std::exp(static_cast<double>(logit));
        const auto logit = static_cast<double>(rows[i][static_cast<std::size_t>(tokens[i].id)]);
        EXPECT_NEAR(tokens[i].log_prob, logit - std::log(sum), 2e-6);
      }
    }
  }
}

TEST(Sampler, SendsTheBytesThatItsHeaderSays) {
  const std::vector<std::vector<float>> rows(3, random_row(1, 2000, 8.0));
  const std::vector<std::int64_t> bounds{0, 1000, 2000};
  const auto gathers = [&](const SamplingRule& rule, bool log_probs) {
    return choose(rows, bounds, rule, some_places(3), log_probs).gathers;
  };
  EXPECT_EQ(gathers({0.0, 0, 1.0, 1}, false).bytes, 3 * 16);
  EXPECT_EQ(gathers({0.0, 0, 1.0, 1}, true).bytes, 3 * (16 + 16));
  EXPECT_EQ(gathers({1.0, 0, 0.9, 1}, false).bytes, 3 * (16 + 256 * 8));
  EXPECT_EQ(gathers({1.0, 0, 0.9, 1}, false).calls, 1);
  EXPECT_EQ(gathers({1.0, 300, 0.9, 1}, false).bytes, 3 * (16 + 300 * 8));
}

TEST(Sampler, LogitsThatAreNotFiniteAndRulesOutOfRangeAreRefusedByName) {
  for (const double temperature : {0.0, 1.0}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<std::vector<float>> rows(3, random_row(1, 40, 1.0));
      rows[1][25] = bad;
      expect_error(ErrorKind::kNonFinite, {"prompt 1", "not finite"}, [&] {
        (void)choose(rows, {0, 20, 40}, {temperature, 0, 0.9, 1}, some_places(3));
      });
    }
  }
  expect_error(ErrorKind::kUsage, {"--temperature", "-1"}, [] { check_sampling_rule({-1.0, 0, 1.0, 1}); });
  expect_error(ErrorKind::kUsage, {"--temperature", "1e-05"}, [] { check_sampling_rule({1e-5, 0, 1.0, 1}); });
  expect_error(ErrorKind::kUsage, {"--top-k", "-3"}, [] { check_sampling_rule({1.0, -3, 1.0, 1}); });
  for (const double top_p : {0.0, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    expect_error(ErrorKind::kUsage, {"--top-p"}, [&] { check_sampling_rule({1.0, 0, top_p, 1}); });
  }
}

}  // namespace
}  // namespace reprise
