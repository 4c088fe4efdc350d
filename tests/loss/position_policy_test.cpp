#include "loss/position_policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "core/random.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

using Indices = std::vector<std::int64_t>;

struct Sample {
  std::uint64_t id = 0;
  std::vector<std::uint32_t> position;
  std::vector<float> confidence;
};

Sample random_sample(std::uint64_t id, std::int64_t targets) {
  std::mt19937_64 random(id);
  Sample sample{id, {}, {}};
  std::uint32_t position = 0;
  for (std::int64_t t = 0; t < targets; ++t) {
    sample.position.push_back(position += 1 + static_cast<std::uint32_t>(random() % 4));
    const double u = static_cast<double>(random() >> 11) * 0x1.0p-53;
    sample.confidence.push_back(static_cast<float>(t % 3 == 0 ? u : 1.0 - u * u * u));  // crowded at the top
  }
  return sample;
}

Indices select(PositionPolicy policy, std::int64_t budget, const Sample& sample, std::uint64_t seed = 1) {
  return select_positions(policy, budget, seed, sample.id, sample.position, sample.confidence);
}

/// Takes one target at a time: always from the bucket that has given least, lowest bucket first, smallest hash first.
Indices naive_buckets(std::int64_t budget, const Sample& sample, std::uint64_t seed = 1) {
  std::vector<std::vector<std::pair<std::uint64_t, std::int64_t>>> buckets(5);
  for (std::size_t i = 0; i < sample.position.size(); ++i) {
    const int bucket = std::min(4, static_cast<int>(sample.confidence[i] * 5.0f));
    buckets[static_cast<std::size_t>(bucket)].emplace_back(random_bits(seed, sample.id, sample.position[i]), i);
  }
  for (auto& bucket : buckets) std::sort(bucket.begin(), bucket.end());
  std::vector<std::size_t> given(5);
  Indices chosen;
  while (static_cast<std::int64_t>(chosen.size()) < budget) {
    std::size_t best = 5;
    for (std::size_t b = 0; b < 5; ++b) {
      if (given[b] < buckets[b].size() && (best == 5 || given[b] < given[best])) best = b;
    }
    if (best == 5) break;
    chosen.push_back(buckets[best][given[best]++].second);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

TEST(PositionPolicy, WithoutBudgetEverythingIsTaken) {
  const Sample sample = random_sample(4, 17);
  Indices all(17);
  std::iota(all.begin(), all.end(), 0);
  for (const char* name : {"all", "random", "last", "bucket"}) {
    EXPECT_EQ(select(parse_position_policy(name), 0, sample), all);
    EXPECT_TRUE(select(parse_position_policy(name), 0, Sample{}).empty());
  }
  for (const char* name : {"random", "last", "bucket"}) EXPECT_EQ(select(parse_position_policy(name), 17, sample), all);
}

TEST(PositionPolicy, LastAndRandom) {
  const Sample sample = random_sample(4, 10);
  EXPECT_EQ(select(PositionPolicy::kLast, 3, sample), (Indices{7, 8, 9}));

  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed;
  for (std::size_t i = 0; i < 10; ++i) keyed.emplace_back(random_bits(1, 4, sample.position[i]), i);
  std::sort(keyed.begin(), keyed.end());
  Indices expected;
  for (std::size_t i = 0; i < 4; ++i) expected.push_back(keyed[i].second);
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(select(PositionPolicy::kRandom, 4, sample), expected);
  EXPECT_NE(select(PositionPolicy::kRandom, 4, sample), select(PositionPolicy::kRandom, 4, sample, 2));
}

TEST(PositionPolicy, RandomIsUniform) {
  std::vector<int> taken(12);
  for (std::uint64_t id = 0; id < 3000; ++id) {
    Sample sample{id, std::vector<std::uint32_t>(12), std::vector<float>(12, 0.5f)};
    std::iota(sample.position.begin(), sample.position.end(), 0u);
    for (const std::int64_t i : select(PositionPolicy::kRandom, 3, sample)) ++taken[static_cast<std::size_t>(i)];
  }
  for (const int count : taken) EXPECT_NEAR(count, 750, 120);  // 5 standard deviations
}

TEST(PositionPolicy, BucketsFillToAWaterLevel) {
  for (std::uint64_t id = 0; id < 60; ++id) {
    const Sample sample = random_sample(id, static_cast<std::int64_t>(id % 23) * 3);
    for (std::int64_t budget = 1; budget < 70; budget += 3) {
      ASSERT_EQ(select(PositionPolicy::kBucket, budget, sample), naive_buckets(budget, sample)) << id << " " << budget;
    }
  }
}

TEST(PositionPolicy, BucketEdges) {
  // One in each bucket; 1.0 belongs to the last, 0.2 to the second.
  const Sample sample{9, {0, 1, 2, 3, 4, 5, 6}, {0.0f, 0.2f, 0.4f, 0.6f, 0.8f, 1.0f, 0.19999999f}};
  const Indices chosen = select(PositionPolicy::kBucket, 5, sample);
  EXPECT_EQ(std::count_if(chosen.begin(), chosen.end(), [](auto i) { return i == 0 || i == 6; }), 1);
  EXPECT_EQ(std::count_if(chosen.begin(), chosen.end(), [](auto i) { return i == 4 || i == 5; }), 1);
  EXPECT_EQ(chosen.size(), 5u);
}

TEST(PositionPolicy, DoesNotDependOnTargetsThatAreNotChosen) {
  const Sample sample = random_sample(11, 60);
  for (const auto policy : {PositionPolicy::kRandom, PositionPolicy::kLast, PositionPolicy::kBucket}) {
    const Indices chosen = select(policy, 15, sample);
    Sample fewer{11, {}, {}};
    std::vector<std::uint32_t> expected, found;
    for (std::int64_t i = 0; i < 60; ++i) {
      const bool is_chosen = std::binary_search(chosen.begin(), chosen.end(), i);
      if (is_chosen) expected.push_back(sample.position[static_cast<std::size_t>(i)]);
      if (!is_chosen && i % 2 == 0) continue;
      fewer.position.push_back(sample.position[static_cast<std::size_t>(i)]);
      fewer.confidence.push_back(sample.confidence[static_cast<std::size_t>(i)]);
    }
    for (const std::int64_t i : select(policy, 15, fewer)) found.push_back(fewer.position[static_cast<std::size_t>(i)]);
    EXPECT_EQ(found, expected);
  }
}

TEST(PositionPolicy, WrongInput) {
  const Sample sample = random_sample(4, 5);
  expect_error(ErrorKind::kUsage, {"positions = \"frist\"", "\"bucket\""},
               [] { (void)parse_position_policy("frist"); });
  expect_error(ErrorKind::kUsage, {"budget = -1"}, [&] { select(PositionPolicy::kLast, -1, sample); });
  expect_error(ErrorKind::kUsage, {"budget = 3"}, [&] { select(PositionPolicy::kAll, 3, sample); });
}

}  // namespace
}  // namespace reprise
