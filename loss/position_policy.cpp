#include "loss/position_policy.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "core/error.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

using Indices = std::vector<std::int64_t>;

/// Keeps the `count` indices of smallest (hash of sample and position, position).
void keep_smallest_hashes(Indices& indices, std::int64_t count, std::uint64_t seed, std::uint64_t sample_id,
                          std::span<const std::uint32_t> position) {
  if (count >= static_cast<std::int64_t>(indices.size())) return;
  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed;
  keyed.reserve(indices.size());
  for (const std::int64_t i : indices) {
    keyed.emplace_back(random_bits(seed, sample_id, position[static_cast<std::size_t>(i)]), i);
  }
  std::nth_element(keyed.begin(), keyed.begin() + count, keyed.end());
  indices.clear();
  for (std::int64_t i = 0; i < count; ++i) indices.push_back(keyed[static_cast<std::size_t>(i)].second);
}

/// How many to take of each bucket: the largest level L with sum_b min(n_b, L) <= budget, and one more from low to
/// high bucket while the budget lasts.
std::array<std::int64_t, kNumConfidenceBuckets> quotas(const std::array<Indices, kNumConfidenceBuckets>& buckets,
                                                       std::int64_t budget) {
  const auto filled = [&](std::int64_t level) {
    std::int64_t sum = 0;
    for (const Indices& bucket : buckets) sum += std::min(static_cast<std::int64_t>(bucket.size()), level);
    return sum;
  };
  std::int64_t low = 0, high = budget;  // filled(low) <= budget
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (filled(middle) <= budget) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  std::int64_t rest = budget - filled(low);
  std::array<std::int64_t, kNumConfidenceBuckets> quota{};
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    const auto size = static_cast<std::int64_t>(buckets[b].size());
    quota[b] = std::min(size, low);
    if (size > low && rest > 0) {
      ++quota[b];
      --rest;
    }
  }
  return quota;
}

}  // namespace

std::size_t confidence_bucket(float confidence) {
  REPRISE_CHECK(confidence >= 0.0f, "confidence {}", confidence);
  constexpr auto kLast = static_cast<float>(kNumConfidenceBuckets - 1);
  return static_cast<std::size_t>(std::min(confidence * static_cast<float>(kNumConfidenceBuckets), kLast));
}

PositionPolicy parse_position_policy(std::string_view name) {
  if (name == "all") return PositionPolicy::kAll;
  if (name == "random") return PositionPolicy::kRandom;
  if (name == "last") return PositionPolicy::kLast;
  if (name == "bucket") return PositionPolicy::kBucket;
  fail(ErrorKind::kUsage, "replay.positions = \"{}\": must be \"all\", \"random\", \"last\" or \"bucket\"", name);
}

std::vector<std::int64_t> select_positions(PositionPolicy policy, std::int64_t budget, std::uint64_t seed,
                                           std::uint64_t sample_id, std::span<const std::uint32_t> position,
                                           std::span<const float> confidence) {
  REPRISE_CHECK(position.size() == confidence.size(), "{} positions, {} confidences", position.size(),
                confidence.size());
  require(budget >= 0, ErrorKind::kUsage, "replay.budget = {}: must not be negative", budget);
  require(budget == 0 || policy != PositionPolicy::kAll, ErrorKind::kUsage,
          "replay.budget = {} needs replay.positions \"random\", \"last\" or \"bucket\"; \"all\" takes every target",
          budget);
  const auto count = static_cast<std::int64_t>(position.size());
  Indices chosen(position.size());
  std::iota(chosen.begin(), chosen.end(), 0);
  if (budget == 0 || budget >= count) return chosen;

  if (policy == PositionPolicy::kLast) {
    chosen.erase(chosen.begin(), chosen.end() - budget);
  } else if (policy == PositionPolicy::kRandom) {
    keep_smallest_hashes(chosen, budget, seed, sample_id, position);
  } else {
    std::array<Indices, kNumConfidenceBuckets> buckets;
    for (const std::int64_t i : chosen)
      buckets[confidence_bucket(confidence[static_cast<std::size_t>(i)])].push_back(i);
    const auto quota = quotas(buckets, budget);
    chosen.clear();
    for (std::size_t b = 0; b < buckets.size(); ++b) {
      keep_smallest_hashes(buckets[b], quota[b], seed, sample_id, position);
      chosen.insert(chosen.end(), buckets[b].begin(), buckets[b].end());
    }
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace reprise
