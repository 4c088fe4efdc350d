#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "loss/local_top_k.hpp"
#include "loss/top_k.hpp"

namespace reprise {

/// A token's softmax over the whole vocabulary, and its gold token.
struct TokenSoftmax {
  double sum_exp = 0.0;        ///< sum of e^z / 2^reference
  std::int32_t reference = 0;  ///< of the largest logit
  std::int32_t gold = 0;
  float gold_logit = 0.0f;
};

/// Probability of a logit.
[[nodiscard]] double probability(const TokenSoftmax& softmax, float logit);

struct TokenSet {
  std::vector<std::uint32_t> ids;  ///< ascending
  std::vector<float> log_prob;     ///< of ids, when asked for
  bool gold_forced = false;        ///< gold was outside the selected set
  float mass = 0.0f;               ///< probability of the set, gold included
};

/// The set of a token from its first min(k_max, V) candidates, sorted: the fewest, in order, whose mass reaches tau
/// (all of them for tau >= 1), at least k_min; then gold is put in, in place of the last when there are k_max. A mass
/// within 2^-40 below tau has reached it: sums that are equal but for rounding decide alike.
[[nodiscard]] TokenSet select_set(std::span<const Candidate> sorted, const TokenSoftmax& softmax,
                                  const TopKOptions& options);

/// Throws Error(kUsage) naming the key for options out of range.
void check_top_k_options(const TopKOptions& options);

}  // namespace reprise
