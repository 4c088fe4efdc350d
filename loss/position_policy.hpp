#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace reprise {

/// Which target positions of a sample are recorded. Decided from (seed, sample, position) and, for kBucket, the base
/// probability of gold; never from layout or order.
enum class PositionPolicy : std::uint8_t { kAll, kRandom, kLast, kBucket };
/// "all", "random", "last", "bucket"; throws Error(kUsage) otherwise.
[[nodiscard]] PositionPolicy parse_position_policy(std::string_view name);
inline constexpr int kNumConfidenceBuckets = 5;
/// Which of the equal-width buckets of [0, 1] a probability lies in.
[[nodiscard]] std::size_t confidence_bucket(float confidence);

/// Indices (ascending) into `position` of the chosen targets; at most `budget` (0 = no limit, the only value for kAll:
/// Error(kUsage) otherwise).
/// kRandom: the smallest hashes. kLast: the last ones. kBucket: five equal-width buckets of `confidence`; water level L
/// with sum_b min(n_b, L) <= budget, the rest from low to high bucket, smallest hash first.
[[nodiscard]] std::vector<std::int64_t> select_positions(PositionPolicy policy, std::int64_t budget, std::uint64_t seed,
                                                         std::uint64_t sample_id,
                                                         std::span<const std::uint32_t> position,
                                                         std::span<const float> confidence);

}  // namespace reprise
