#include "loss/set_rule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/error.hpp"

namespace reprise {

namespace {

double scaled_exp(float logit, std::int32_t reference) {
  return std::exp(static_cast<double>(logit) - reference * std::numbers::ln2);
}

/// e^z / 2^reference of the candidates in float64, and the sum over the vocabulary with their float32 terms replaced by
/// these: the sum is as good as its largest terms are.
struct Weights {
  std::vector<double> of;
  double total = 0.0;

  Weights(std::span<const Candidate> sorted, const TokenSoftmax& softmax) : of(sorted.size()) {
    std::vector<float> rounded(sorted.size());
    sum_exp_terms(sorted, softmax.reference, rounded);
    for (std::size_t i = 0; i < of.size(); ++i) of[i] = scaled_exp(value_of(sorted[i]), softmax.reference);
    const double others = softmax.sum_exp - std::accumulate(rounded.begin(), rounded.end(), 0.0);
    total = std::max(0.0, others) + std::accumulate(of.begin(), of.end(), 0.0);
  }
};

std::size_t fewest(const Weights& weights, const TopKOptions& options) {
  const std::size_t most = weights.of.size();
  if (options.tau >= 1.0) return most;
  const double wanted = options.tau * weights.total * (1.0 - 0x1p-40);
  double sum = 0.0;
  std::size_t count = 0;
  while (count < most && sum < wanted) sum += weights.of[count++];
  return std::clamp(count, std::min(most, static_cast<std::size_t>(options.k_min)), most);
}

}  // namespace

double probability(const TokenSoftmax& softmax, float logit) {
  return scaled_exp(logit, softmax.reference) / softmax.sum_exp;
}

TokenSet select_set(std::span<const Candidate> sorted, const TokenSoftmax& softmax, const TopKOptions& options) {
  const Weights weights(sorted, softmax);
  const std::size_t count = fewest(weights, options);
  std::vector<Candidate> chosen(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count));
  double mass = std::accumulate(weights.of.begin(), weights.of.begin() + static_cast<std::ptrdiff_t>(count), 0.0);

  TokenSet set;
  const auto gold = static_cast<std::uint32_t>(softmax.gold);
  set.gold_forced = std::none_of(chosen.begin(), chosen.end(), [gold](Candidate c) { return id_of(c) == gold; });
  if (set.gold_forced) {
    if (static_cast<std::int64_t>(count) == options.k_max) {
      mass -= weights.of[count - 1];
      chosen.pop_back();
    }
    chosen.push_back(make_candidate(softmax.gold_logit, gold));
    mass += scaled_exp(softmax.gold_logit, softmax.reference);
  }
  set.mass = static_cast<float>(std::clamp(mass / weights.total, 0.0, 1.0));

  std::sort(chosen.begin(), chosen.end(), [](Candidate a, Candidate b) { return id_of(a) < id_of(b); });
  set.ids.resize(chosen.size());
  std::transform(chosen.begin(), chosen.end(), set.ids.begin(), id_of);
  if (options.log_probs) {
    const double log_sum = std::log(weights.total) + softmax.reference * std::numbers::ln2;
    for (const Candidate c : chosen) {
      set.log_prob.push_back(static_cast<float>(static_cast<double>(value_of(c)) - log_sum));
    }
  }
  return set;
}

void check_top_k_options(const TopKOptions& options) {
  constexpr std::int64_t kMostIds = 65536;
  require(options.tau > 0.0, ErrorKind::kUsage, "replay.tau = {}: must be above 0; 1 means k_max ids", options.tau);
  require(options.k_max >= 1 && options.k_max <= kMostIds, ErrorKind::kUsage, "replay.k_max = {}: must be 1 to {}",
          options.k_max, kMostIds);
  require(options.k_min >= 1 && options.k_min <= options.k_max, ErrorKind::kUsage,
          "replay.k_min = {}: must be 1 to k_max = {}", options.k_min, options.k_max);
  require(options.budget >= 0, ErrorKind::kUsage, "replay.budget = {}: must not be negative", options.budget);
}

}  // namespace reprise
