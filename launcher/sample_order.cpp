#include "launcher/sample_order.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kLongestCycle = 65536;

/// Shares of the weights in a cycle of `cycle` turns, rounded to the nearest.
std::vector<std::int64_t> rounded_turns(const std::vector<double>& shares, std::int64_t cycle) {
  std::vector<std::int64_t> turns;
  for (const double share : shares) turns.push_back(std::llround(share * static_cast<double>(cycle)));
  return turns;
}

bool is_exact(const std::vector<double>& shares, const std::vector<std::int64_t>& turns, std::int64_t cycle) {
  for (std::size_t p = 0; p < shares.size(); ++p) {
    const double wanted = shares[p] * static_cast<double>(cycle);
    if (turns[p] < 1 || std::abs(wanted - static_cast<double>(turns[p])) > 1e-9) return false;
  }
  return std::accumulate(turns.begin(), turns.end(), std::int64_t{0}) == cycle;
}

/// One turn each, the others by largest remainder.
std::vector<std::int64_t> turns_by_remainder(const std::vector<double>& shares) {
  const auto count = static_cast<std::int64_t>(shares.size());
  std::vector<std::int64_t> turns;
  std::vector<std::pair<double, std::size_t>> remainders;
  std::int64_t left = kLongestCycle;
  for (std::size_t p = 0; p < shares.size(); ++p) {
    const double wanted = shares[p] * static_cast<double>(kLongestCycle - count);
    turns.push_back(1 + static_cast<std::int64_t>(std::floor(wanted)));
    remainders.emplace_back(std::floor(wanted) - wanted, p);
    left -= turns.back();
  }
  std::sort(remainders.begin(), remainders.end());
  for (std::int64_t i = 0; i < left; ++i) ++turns[remainders[static_cast<std::size_t>(i % count)].second];
  return turns;
}

std::vector<std::int64_t> turns_of(const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> shares;
  for (const double weight : weights) {
    require(weight > 0.0 && std::isfinite(sum), ErrorKind::kUsage, "data.weights holds {}: weights are above 0",
            weight);
    shares.push_back(weight / sum);
  }
  for (auto cycle = static_cast<std::int64_t>(weights.size()); cycle <= kLongestCycle; ++cycle) {
    std::vector<std::int64_t> turns = rounded_turns(shares, cycle);
    if (is_exact(shares, turns, cycle)) return turns;
  }
  return turns_by_remainder(shares);
}

}  // namespace

SampleOrder::SampleOrder(std::vector<std::int64_t> sizes, const std::vector<double>& weights, bool shuffle,
                         std::uint64_t seed)
    : shuffle_(shuffle), seed_(seed), sizes_(std::move(sizes)) {
  for (const std::int64_t size : sizes_) begin_.push_back(begin_.back() + size);
  if (weights.empty()) return;
  require(weights.size() == sizes_.size(), ErrorKind::kUsage,
          "data.weights holds {} numbers for the {} prefixes of data.train; give one each, or none", weights.size(),
          sizes_.size());
  for (std::size_t p = 0; p < sizes_.size(); ++p) {
    require(sizes_[p] > 0, ErrorKind::kData, "prefix {} of data.train holds no document and cannot take its share", p);
  }
  turns_ = turns_of(weights);
  const std::int64_t cycle = std::accumulate(turns_.begin(), turns_.end(), std::int64_t{0});
  std::vector<std::int64_t> had(sizes_.size(), 0);
  for (std::int64_t i = 0; i < cycle; ++i) {
    std::size_t next = 0;
    const auto deficit = [&](std::size_t p) { return turns_[p] * (i + 1) - cycle * had[p]; };
    for (std::size_t p = 1; p < sizes_.size(); ++p) {
      if (deficit(p) > deficit(next)) next = p;
    }
    cycle_.push_back({static_cast<std::uint32_t>(next), static_cast<std::uint32_t>(had[next]++)});
  }
  REPRISE_CHECK(had == turns_, "a cycle of {} samples does not give every prefix its turns", cycle);
}

std::int64_t SampleOrder::draw(std::uint64_t seed, std::int64_t size, std::int64_t n) const {
  const std::int64_t epoch = n / size, index = n % size;
  if (!shuffle_) return index;
  const std::uint64_t key = random_bits(seed, static_cast<std::uint64_t>(epoch));
  return static_cast<std::int64_t>(
      random_permutation(key, static_cast<std::uint64_t>(size), static_cast<std::uint64_t>(index)));
}

std::int64_t SampleOrder::document(std::int64_t n) const {
  if (cycle_.empty()) return draw(seed_, size(), n);
  const auto cycle = static_cast<std::int64_t>(cycle_.size());
  const Turn& turn = cycle_[static_cast<std::size_t>(n % cycle)];
  const std::size_t p = turn.prefix;
  // Prefix 0 alone keeps the order that it has without weights.
  const std::uint64_t seed = p == 0 ? seed_ : random_bits(seed_, p, 1);
  return begin_[p] + draw(seed, sizes_[p], n / cycle * turns_[p] + turn.before);
}

double SampleOrder::share(std::size_t prefix) const {
  if (cycle_.empty()) return static_cast<double>(sizes_[prefix]) / static_cast<double>(size());
  return static_cast<double>(turns_[prefix]) / static_cast<double>(cycle_.size());
}

StepSamples step_samples(std::int64_t step, std::int64_t global_batch, double general_ratio) {
  constexpr std::int64_t kMillion = 1000000;
  const std::int64_t millionths = std::llround(general_ratio * static_cast<double>(kMillion));
  const auto general_before = [&](std::int64_t samples) {
    return samples / kMillion * millionths + samples % kMillion * millionths / kMillion;
  };
  const std::int64_t first = step * global_batch, end = first + global_batch;
  StepSamples samples;
  samples.general = {general_before(first), general_before(end)};
  samples.domain = {first - samples.general.begin, end - samples.general.end};
  return samples;
}

}  // namespace reprise
