#pragma once

#include <cstdint>
#include <random>
#include <set>

#include "core/half.hpp"
#include "loss/candidate_tiles.hpp"

namespace reprise {

/// Records of a made-up sample: `tokens` sets of 1 to max_ids ids, at every other position. Of (id, arguments) alone.
inline SampleRecords random_records(std::uint64_t sample_id, std::int64_t tokens, std::uint32_t vocab_size,
                                    std::size_t max_ids, bool with_log_prob = false) {
  std::mt19937_64 random(sample_id);
  const auto probability = [&random] { return static_cast<float>(random() >> 40) * 0x1p-24f; };
  SampleRecords records;
  records.sample_id = sample_id;
  records.sample_hash = random();
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::set<std::uint32_t> set;
    const std::size_t size = 1 + random() % max_ids;
    while (set.size() < size) set.insert(static_cast<std::uint32_t>(random() % vocab_size));
    auto gold = set.begin();
    std::advance(gold, static_cast<std::ptrdiff_t>(random() % set.size()));
    records.position.push_back(static_cast<std::uint32_t>(2 * t));
    records.gold.push_back(*gold);
    records.flags.push_back(random() % 8 == 0 ? SampleRecords::kGoldForced : std::uint8_t{0});
    records.mass.push_back(probability());
    records.confidence.push_back(probability());
    records.ids.insert(records.ids.end(), set.begin(), set.end());
    records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
  }
  // What half precision can hold, so that it comes back as it went.
  const auto log_prob = [&] { return half_to_float(float_to_half(-20.0f * probability())); };
  for (std::size_t i = 0; with_log_prob && i < records.ids.size(); ++i) records.log_prob.push_back(log_prob());
  return records;
}

inline bool same_records(const SampleRecords& a, const SampleRecords& b) {
  return a.sample_id == b.sample_id && a.sample_hash == b.sample_hash && a.position == b.position && a.gold == b.gold &&
         a.flags == b.flags && a.mass == b.mass && a.confidence == b.confidence && a.id_begin == b.id_begin &&
         a.ids == b.ids && a.log_prob == b.log_prob;
}

}  // namespace reprise
