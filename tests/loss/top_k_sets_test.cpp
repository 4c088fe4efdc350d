// The set rule on given logits: exactly the oracle's sets, for every sharding of the same logits.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>

#include "tests/core/simd_levels.hpp"
#include "tests/loss/make_records.hpp"
#include "tests/loss/top_k_problem.hpp"
#include "tests/support/device.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// body() in every way the device can do it. Elsewhere than on a CPU the instruction set plays no part.
void on_every_level(const std::function<void()>& body) {
  test_stream().is_cpu() ? at_every_simd_level(body) : body();
}

struct Logits {
  std::vector<float> values;  // [tokens, columns]
  VocabPartition vocab;       // one shard
  CollectProblem problem;
};

/// Four samples (one of a single row, one without targets) and logits from value(token, id); `padding` columns behind
/// the vocabulary hold what would win if it were looked at.
Logits make_logits(std::int64_t vocab_size, std::int64_t padding,
                   const std::function<float(std::int64_t, std::int64_t)>& value) {
  Logits logits;
  logits.vocab = VocabPartition::even(vocab_size + padding, vocab_size, 1);
  logits.problem.add_sample(40, 9, vocab_size);
  logits.problem.add_sample(7, 1, vocab_size);
  logits.problem.add_sample(1003, 0, vocab_size);
  logits.problem.add_sample(22, 12, vocab_size);
  for (std::int64_t t = 0; t < logits.problem.tokens(); ++t) {
    for (std::int64_t id = 0; id < vocab_size + padding; ++id) {
      logits.values.push_back(id < vocab_size ? value(t, id) : 1e9f);
    }
  }
  return logits;
}

/// Partitions of the columns: even ones of 1, 2, 3, 4, 8 ranks, and uneven ones with empty shards.
std::vector<VocabPartition> partitions(std::int64_t columns, std::int64_t vocab_size) {
  std::vector<VocabPartition> all;
  for (const int tp : on_cpu_or<std::vector<int>>({1, 2, 3, 4, 8}, {1, 3}))
    all.push_back(VocabPartition::even(columns, vocab_size, tp));
  all.push_back({{0, 0, std::min<std::int64_t>(3, columns), columns}, vocab_size});
  all.push_back({{0, columns / 5, columns / 5, columns - columns / 7, columns, columns}, vocab_size});
  return all;
}

/// Every sharding gives the oracle's sets, and bit for bit the same records.
void check(const Logits& logits, const TopKOptions& options) {
  on_every_level([&] {
    RecordsById first;
    for (const VocabPartition& vocab : partitions(logits.vocab.bounds.back(), logits.vocab.vocab_size)) {
      const RecordsById records = collect_from_logits(logits.values, vocab, logits.problem, options);
      if (first.empty()) {
        expect_naive(records, logits.values, vocab, logits.problem, options);
        first = records;
      }
      for (const auto& [id, sample] : records) {
        const SampleRecords& other = first.at(id);
        ASSERT_EQ(sample.ids, other.ids) << vocab.tp_size();
        EXPECT_EQ(sample.id_begin, other.id_begin);
        EXPECT_EQ(sample.position, other.position);
        EXPECT_EQ(sample.flags, other.flags);
      }
    }
  });
}

TEST(TopKSets, RandomLogits) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (const std::int64_t vocab_size : on_cpu_or<std::vector<int>>({1, 2, 15, 16, 17, 300, 1111, 5000}, {2, 5000})) {
    const Logits logits = make_logits(vocab_size, vocab_size % 3, [&](auto, auto) { return normal(random); });
    check(logits, {.tau = 0.95, .k_max = 1});
    check(logits, {.tau = 0.95, .k_max = 200});
    if (!test_stream().is_cpu()) continue;
    check(logits, {.tau = 0.3, .k_max = 40});
    check(logits, {.tau = 1.0, .k_max = 40});
    check(logits, {.tau = 0.95, .k_max = 1024});
  }
}

TEST(TopKSets, Ties) {
  std::mt19937_64 random(2);
  for (const std::int64_t vocab_size : on_cpu_or<std::vector<int>>({40, 700}, {700})) {
    const Logits few_values =
        make_logits(vocab_size, 5, [&](auto, auto) { return 0.5f * static_cast<float>(random() % 7); });
    for (const std::int64_t k_max : on_cpu_or<std::vector<int>>({1, 3, 10, 64}, {3, 64})) {
      for (const double tau : on_cpu_or<std::vector<double>>({0.1, 0.5, 0.9, 1.0}, {0.5}))
        check(few_values, {.tau = tau, .k_max = k_max});
    }
  }
}

TEST(TopKSets, AllEqualDecidesByIdAndExactShares) {
  // Of 40 equal ids, 12 have exactly 0.3 of the mass, though 0.3 is no float64.
  const Logits equal = make_logits(40, 2, [](auto, auto) { return -3.7f; });
  on_every_level([&] {
    for (const auto& [id, sample] :
         collect_from_logits(equal.values, equal.vocab, equal.problem, {.tau = 0.3, .k_max = 40})) {
      for (std::size_t t = 0; t < sample.gold.size(); ++t) {
        const std::size_t size = sample.gold[t] < 12 ? 12 : 13;
        ASSERT_EQ(sample.id_begin[t + 1] - sample.id_begin[t], static_cast<std::int64_t>(size));
        for (std::uint32_t i = 0; i < 12; ++i) {
          EXPECT_EQ(sample.ids[static_cast<std::size_t>(sample.id_begin[t]) + i], i);
        }
      }
    }
  });
  for (int share = 1; share < 40; share += on_cpu_or(1, 11)) check(equal, {.tau = share / 40.0, .k_max = 40});
  check(equal, {.tau = 0.5, .k_max = 7});
}

TEST(TopKSets, OneIdAndGoldOutside) {
  // The largest logit is id 5 everywhere; k_max = 1 leaves gold alone.
  const Logits logits =
      make_logits(30, 1, [](auto, auto id) { return id == 5 ? 4.0f : 0.01f * static_cast<float>(id); });
  check(logits, {.tau = 0.5, .k_max = 1});
  on_every_level([&] {
    const RecordsById one = collect_from_logits(logits.values, logits.vocab, logits.problem, {.tau = 0.5, .k_max = 1});
    for (const auto& [id, sample] : one) EXPECT_EQ(sample.ids, sample.gold);
  });
  check(logits, {.tau = 0.5, .k_max = 2});   // gold is added
  check(logits, {.tau = 0.99, .k_max = 2});  // gold takes the second's place
  check(logits, {.tau = 0.5, .k_max = 9, .k_min = 4});
  check(logits, {.tau = 1.0, .k_max = 30});
  if (!test_stream().is_cpu()) return;
  check(logits, {.tau = 0.5, .k_max = 9, .k_min = 9});
  check(logits, {.tau = 2.0, .k_max = 30});
  check(logits, {.tau = 1e-9, .k_max = 30});
}

TEST(TopKSets, SignedZerosAreEqual) {
  const Logits zeros = make_logits(100, 3, [](auto t, auto id) { return (t + id) % 3 == 0 ? -0.0f : 0.0f; });
  const auto k_maxs = on_cpu_or<std::vector<int>>({1, 10, 33, 90}, {33});
  for (const std::int64_t k_max : k_maxs) check(zeros, {.tau = 1.0, .k_max = k_max});
  const Logits around = make_logits(100, 3, [](auto t, auto id) {
    return (t + id) % 5 == 0 ? 1e-40f : (t + id) % 5 == 1 ? -1e-40f : (t + id) % 5 == 2 ? -0.0f : 0.0f;
  });
  for (const std::int64_t k_max : k_maxs) check(around, {.tau = 1.0, .k_max = k_max});
}

TEST(TopKSets, OrderedAndClusteredRows) {
  // What defeats a bound from block maxima: the best all in one place, in rising order, or equal in great number.
  const std::int64_t size = 4000;
  const auto rising = [](auto, auto id) { return static_cast<float>(id) * 0.002f; };
  const auto falling = [](auto, auto id) { return static_cast<float>(-id) * 0.002f; };
  const auto clustered = [](auto t, auto id) { return id / 150 == t ? 5.0f + static_cast<float>(id % 7) : 0.0f; };
  const auto flood = [](auto, auto id) { return id % 2 == 0 ? 1.0f : 0.5f; };
  const auto outlier = [](auto t, auto id) { return id == 17 * t ? 1e5f : static_cast<float>(id % 97) * 0.01f; };
  for (const auto& value : {std::function<float(std::int64_t, std::int64_t)>(rising),
                            std::function<float(std::int64_t, std::int64_t)>(falling),
                            std::function<float(std::int64_t, std::int64_t)>(clustered),
                            std::function<float(std::int64_t, std::int64_t)>(flood),
                            std::function<float(std::int64_t, std::int64_t)>(outlier)}) {
    const Logits logits = make_logits(size, 7, value);
    for (const std::int64_t k_max : on_cpu_or<std::vector<int>>({1, 20, 130}, {20})) {
      check(logits, {.tau = 1.0, .k_max = k_max});
    }
    if (test_stream().is_cpu()) check(logits, {.tau = 0.9, .k_max = 130});
  }
}

TEST(TopKSets, LargeLogits) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (const float scale : {1e-3f, 60.0f, 1000.0f, 3e5f}) {
    const Logits logits = make_logits(900, 2, [&](auto, auto) { return scale * normal(random); });
    for (const double tau : on_cpu_or<std::vector<double>>({0.5, 0.999}, {0.999})) {
      check(logits, {.tau = tau, .k_max = 50});
    }
  }
  const Logits shifted = make_logits(900, 2, [&](auto, auto) { return -30000.0f + normal(random); });
  check(shifted, {.tau = 0.9, .k_max = 50});
}

TEST(TopKSets, PositionPolicies) {
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  const Logits logits = make_logits(60, 4, [&](auto, auto) { return normal(random); });
  for (const auto policy : {PositionPolicy::kRandom, PositionPolicy::kLast, PositionPolicy::kBucket}) {
    for (const std::int64_t budget : on_cpu_or<std::vector<int>>({0, 1, 3, 6}, {3})) {
      check(logits, {.tau = 0.8, .k_max = 20, .positions = policy, .budget = budget, .seed = 5});
    }
  }
}

TEST(TopKSets, LogProbabilities) {
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const Logits logits = make_logits(500, 3, [&](auto, auto) { return normal(random); });
  const TopKOptions options{.tau = 0.9, .k_max = 30, .log_probs = true};
  const auto expect_normalised = [&](const VocabPartition& vocab) {
    for (const auto& [id, sample] : collect_from_logits(logits.values, vocab, logits.problem, options)) {
      ASSERT_EQ(sample.log_prob.size(), sample.ids.size());
      for (std::size_t t = 0; t < sample.gold.size(); ++t) {
        double mass = 0.0;
        for (std::int64_t i = sample.id_begin[t]; i < sample.id_begin[t + 1]; ++i) {
          const auto at = static_cast<std::size_t>(i);
          mass += std::exp(static_cast<double>(sample.log_prob[at]));
          if (sample.ids[at] == sample.gold[t]) {
            EXPECT_NEAR(std::exp(sample.log_prob[at]), sample.confidence[t], 1e-6);
          }
        }
        EXPECT_NEAR(mass, sample.mass[t], 1e-5);
      }
    }
  };
  on_every_level([&] {
    for (const VocabPartition& vocab : partitions(503, 500)) expect_normalised(vocab);
  });
}

TEST(TopKSets, LogitsThatAreNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, kInfinity, -kInfinity, 3e6f, -nan}) {
    for (const std::int64_t where : on_cpu_or<std::vector<int>>({0, 31, 98, 99}, {98})) {
      const Logits logits = make_logits(100, 2, [&](auto t, auto id) { return t == 2 && id == where ? bad : 0.5f; });
      on_every_level([&] {
        for (const VocabPartition& vocab : partitions(102, 100)) {
          expect_error(ErrorKind::kNonFinite, {"token 2"},
                       [&] { (void)collect_from_logits(logits.values, vocab, logits.problem, {}); });
        }
      });
    }
  }
}

TEST(TopKSets, WholeVocabularyRow) {
  std::mt19937_64 random(8);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  Logits logits;
  logits.problem.add_sample(3, 4, 128256);
  logits.vocab = VocabPartition::even(128256, 128256, 1);
  for (std::int64_t i = 0; i < logits.problem.tokens() * 128256; ++i) logits.values.push_back(normal(random));
  check(logits, {.tau = 0.95, .k_max = 200});
  check(logits, {.tau = 1.0, .k_max = 1024});
}

}  // namespace
}  // namespace reprise
