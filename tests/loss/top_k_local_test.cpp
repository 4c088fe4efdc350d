// The candidates and the statistics of one shard, against sorting and adding up.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "loss/local_top_k.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kFirstId = 1000;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Found {
  std::vector<ShardStatistics> statistics;
  std::vector<Candidate> candidates;
};

Found run(const Stream& stream, const std::vector<float>& logits, std::int64_t rows, std::int64_t k,
          const std::vector<std::int32_t>& gold, const LogitRule& rule) {
  const std::int64_t size = static_cast<std::int64_t>(logits.size()) / rows;
  auto device_logits = to_device(stream, logits);
  const auto device_gold = to_device(stream, gold);
  Buffer<ShardStatistics> statistics(stream, rows, "statistics");
  Buffer<Candidate> candidates(stream, rows * std::min(k, size), "candidates");
  Arena arena(stream);
  local_top_k(stream, arena, {device_logits.view(), rows, size}, rule, kFirstId, k, device_gold.view(),
              statistics.view(), {candidates.view(), rows, std::min(k, size)});
  return {to_host(stream, statistics.view()), to_host(stream, candidates.view())};
}

/// Of one row.
void expect_row(const float* logits, std::int64_t size, std::int64_t k, std::int64_t gold,
                const ShardStatistics& statistics, std::vector<Candidate> found) {
  std::vector<Candidate> all;
  for (std::int64_t i = 0; i < size; ++i) {
    all.push_back(make_candidate(logits[i], static_cast<std::uint32_t>(kFirstId + i)));
  }
  const float max = size == 0 ? -kInfinity : *std::max_element(logits, logits + size);
  EXPECT_EQ(statistics.max, max);
  const bool holds_gold = gold >= kFirstId && gold < kFirstId + size;
  EXPECT_EQ(statistics.gold_logit, holds_gold ? logits[gold - kFirstId] : 0.0f);
  std::vector<float> terms(all.size());
  if (size > 0) sum_exp_terms(all, reference_exponent(max), terms);
  const double sum = std::accumulate(terms.begin(), terms.end(), 0.0);
  EXPECT_NEAR(statistics.sum_exp, sum, 1e-14 * static_cast<double>(size) * sum);
  std::sort(all.begin(), all.end());
  all.resize(found.size());
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found, all);
  ASSERT_EQ(static_cast<std::int64_t>(found.size()), std::min(k, size));
}

/// Rows from value(row, i), on every stream.
void check(std::int64_t rows, std::int64_t size, std::int64_t k,
           const std::function<float(std::int64_t, std::int64_t)>& value) {
  SCOPED_TRACE(testing::Message() << size << " logits, k " << k);
  std::vector<float> logits;
  std::vector<std::int32_t> gold;
  for (std::int64_t t = 0; t < rows; ++t) {
    gold.push_back(static_cast<std::int32_t>(kFirstId - 1 + t * (size + 1) / rows));  // the first is another shard's
    for (std::int64_t i = 0; i < size; ++i) logits.push_back(value(t, i));
  }
  const std::int64_t found = std::min(k, size);
  on_every_stream([&](const Stream& stream) {
    const Found top = run(stream, logits, rows, k, gold, {});
    for (std::int64_t t = 0; t < rows; ++t) {
      expect_row(logits.data() + t * size, size, k, gold[static_cast<std::size_t>(t)],
                 top.statistics[static_cast<std::size_t>(t)],
                 {top.candidates.begin() + t * found, top.candidates.begin() + (t + 1) * found});
    }
    if (!stream.is_cpu()) {
      for (std::int64_t t = 0; t < rows; ++t) {
        EXPECT_TRUE(std::is_sorted(top.candidates.begin() + t * found, top.candidates.begin() + (t + 1) * found));
      }
    }
  });
}

TEST(TopKLocal, AnySizeAndK) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const auto value = [&](auto, auto) { return normal(random); };
  for (const std::int64_t size : {1, 2, 3, 5, 31, 64, 129, 1023}) {
    for (const std::int64_t k : {1, 3, 64}) check(5, size, k, value);  // rows of every alignment
  }
  check(3, 4096, 1, value);
  check(3, 4099, 20, value);    // blocks of 64
  check(3, 8193, 130, value);   // of 16, and more than one warp's stretch
  check(3, 6001, 400, value);   // of 4
  check(2, 3001, 400, value);   // none
  check(2, 5003, 1024, value);  // none, and more than are sorted at once
  check(2, 20001, 1024, value);
  check(2, 900, 900, value);
  check(2, 900, 1024, value);
}

TEST(TopKLocal, MoreThanFitsReachesTheBound) {
  const std::int64_t size = 9001;
  const auto rising = [](auto, auto i) { return static_cast<float>(i) * 0.002f; };
  const auto falling = [](auto, auto i) { return static_cast<float>(-i) * 0.002f; };
  const auto equal = [](auto, auto) { return -3.7f; };
  const auto two_values = [](auto, auto i) { return i % 2 == 0 ? 1.0f : 0.5f; };
  const auto signed_zeros = [](auto t, auto i) { return (t + i) % 3 == 0 ? -0.0f : 0.0f; };
  const auto cluster = [](auto, auto i) { return i < 3000 ? 5.0f + static_cast<float>(i % 1009) * 0.01f : 0.0f; };
  for (const std::int64_t k : {1, 20, 200, 1024}) {
    check(1, size, k, rising);
    check(1, size, k, falling);
    check(1, size, k, equal);
    check(1, size, k, two_values);
    check(1, size, k, signed_zeros);
    check(1, size, k, cluster);
  }
}

TEST(TopKLocal, SumsFollowTheMaximum) {
  // The largest logit late, early, far above or far below the rest, which then is as nothing.
  for (const float peak : {90.0f, 900.0f, 1e6f, -1e6f, -kMaxLogit}) {
    for (const std::int64_t where : {0, 4500, 9000}) {
      check(1, 9001, 7, [=](auto, auto i) {
        return (i == where ? peak : std::min(peak, 0.0f) - 3.0f) - static_cast<float>(i % 5);
      });
    }
  }
  // What a kernel may put where a row has no logit.
  check(3, 9001, 7, [](auto, auto i) { return i == 4321 ? 2.0f : std::numeric_limits<float>::lowest(); });
}

TEST(TopKLocal, RuleMakesLogits) {
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal(0.0f, 40.0f);
  std::vector<float> products;
  for (std::int64_t i = 0; i < 3 * 4099; ++i) products.push_back(normal(random));
  for (const LogitRule& rule : {LogitRule{0.25f, 0.0f}, LogitRule{1.0f, 30.0f}, LogitRule{0.5f, 50.0f}}) {
    std::vector<double> logits;
    for (const float x : products) {
      const double z = static_cast<double>(x) * static_cast<double>(rule.scale),
                   cap = static_cast<double>(rule.softcap);
      logits.push_back(cap > 0.0 ? cap * std::tanh(z / cap) : z);
    }
    on_every_stream([&](const Stream& stream) {
      const Found top = run(stream, products, 3, 50, {1007, 999, 5098}, rule);
      for (std::size_t t = 0; t < 3; ++t) {
        const std::vector<double> row(logits.begin() + static_cast<std::ptrdiff_t>(t * 4099),
                                      logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * 4099));
        std::vector<double> sorted = row;
        std::sort(sorted.begin(), sorted.end(), std::greater<>());
        const ShardStatistics& statistics = top.statistics[t];
        EXPECT_NEAR(statistics.max, sorted[0], 1e-5 * sorted[0]);
        for (std::size_t i = 0; i < 50; ++i) {
          const Candidate candidate = top.candidates[t * 50 + i];
          EXPECT_NEAR(value_of(candidate), row[id_of(candidate) - kFirstId], 1e-5 * sorted[0]);
          EXPECT_GE(value_of(candidate), sorted[49] - 1e-5 * sorted[0]);
        }
        double sum = 0.0;
        for (const double z : row) sum += std::exp(z - reference_exponent(statistics.max) * std::log(2.0));
        EXPECT_NEAR(statistics.sum_exp, sum, 1e-4 * sum);
      }
      EXPECT_NEAR(top.statistics[0].gold_logit, logits[7], 1e-4);
      EXPECT_EQ(top.statistics[1].gold_logit, 0.0f);
      EXPECT_NEAR(top.statistics[2].gold_logit, logits[2 * 4099 + 4098], 1e-4);
    });
  }
}

TEST(TopKLocal, EmptyShardAndNoTokens) {
  on_every_stream([](const Stream& stream) {
    Buffer<float> none(stream, 0, "logits");
    const auto gold = to_device(stream, std::vector<std::int32_t>{4, 1000});
    Buffer<ShardStatistics> statistics(stream, 2, "statistics");
    Buffer<Candidate> candidates(stream, 0, "candidates");
    Arena arena(stream);
    local_top_k(stream, arena, {none.view(), 2, 0}, {}, kFirstId, 5, gold.view(), statistics.view(),
                {candidates.view(), 2, 0});
    for (const ShardStatistics& part : to_host(stream, statistics.view())) {
      EXPECT_EQ(part.max, -kInfinity);
      EXPECT_EQ(part.sum_exp, 0.0);
      EXPECT_EQ(part.gold_logit, 0.0f);
    }
    local_top_k(stream, arena, {none.view(), 0, 70}, {}, kFirstId, 5, gold.view().slice(0, 0),
                statistics.view().slice(0, 0), {candidates.view(), 0, 5});
  });
}

TEST(TopKLocal, LogitsThatAreNotFinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, -nan, kInfinity, -kInfinity, 3e6f}) {
    for (const std::size_t where : {0, 4096, 4999}) {
      std::vector<float> logits(3 * 5000, 0.5f);
      logits[5000 + where] = bad;
      on_every_stream([&](const Stream& stream) {
        const Found top = run(stream, logits, 3, 10, {0, 0, 0}, {});
        EXPECT_EQ(top.statistics[0].max, 0.5f);
        EXPECT_TRUE(std::isnan(top.statistics[1].max));
        EXPECT_EQ(top.statistics[2].max, 0.5f);
      });
    }
  }
}

TEST(TopKLocal, RepeatsBitForBit) {
  std::mt19937_64 random(9);
  std::vector<float> logits;
  for (int i = 0; i < 2 * 9003; ++i) logits.push_back(static_cast<float>(random() % 40000) * 0.0003f);
  on_every_stream([&](const Stream& stream) {
    const Found first = run(stream, logits, 2, 100, {0, 0}, {}), again = run(stream, logits, 2, 100, {0, 0}, {});
    EXPECT_EQ(again.candidates, first.candidates);
    EXPECT_EQ(again.statistics[0].sum_exp, first.statistics[0].sum_exp);
    EXPECT_EQ(again.statistics[1].sum_exp, first.statistics[1].sum_exp);
  });
}

}  // namespace
}  // namespace reprise
