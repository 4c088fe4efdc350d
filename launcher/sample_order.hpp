#pragma once

#include <cstdint>
#include <vector>

#include "parallel/shard.hpp"

namespace reprise {

/// Which document is sample n of a run: a function of n and the seed alone, in constant time and a few hundred KB
/// whatever the size of the data, so that it depends on no layout and a run goes on anywhere.
///
/// Without weights the prefixes are one list of N documents: sample n is document permutation(seed, epoch, n mod N) of
/// epoch n / N, and epochs join without a gap.
///
/// With weights every prefix goes round in epochs of its own, each by a permutation of (seed, prefix, epoch), as often
/// as its share asks for. Shares are the weights over their sum, as whole parts of a cycle of P samples: the least P up
/// to 65536 that gives them exactly, else 65536 (by largest remainder, at least one each). The prefixes take turns
/// within a cycle by the largest deficit: sample i goes to the prefix with the greatest share x (i + 1) - samples it
/// has had, the first of equals. Every cycle is the same, so sample n has its prefix from n mod P, and its number among
/// the samples of that prefix from n / P.
class SampleOrder {
 public:
  /// sizes: documents of each prefix. weights: none, or one above 0 for each (Error(kUsage)). shuffle = false takes the
  /// documents of a prefix in the order of its files.
  SampleOrder(std::vector<std::int64_t> sizes, const std::vector<double>& weights, bool shuffle, std::uint64_t seed);

  /// The document of sample n, counted over all prefixes one behind the other.
  [[nodiscard]] std::int64_t document(std::int64_t n) const;
  [[nodiscard]] std::int64_t size() const { return begin_.back(); }  ///< documents of all prefixes
  /// Part of the samples that come from a prefix.
  [[nodiscard]] double share(std::size_t prefix) const;

 private:
  struct Turn {
    std::uint32_t prefix = 0, before = 0;  ///< before: turns of the prefix earlier in the cycle
  };
  [[nodiscard]] std::int64_t draw(std::uint64_t seed, std::int64_t size, std::int64_t n) const;

  bool shuffle_;
  std::uint64_t seed_;
  std::vector<std::int64_t> sizes_, begin_{0};
  std::vector<std::int64_t> turns_;  ///< of each prefix in a cycle
  std::vector<Turn> cycle_;          ///< empty without weights
};

/// The part of a global batch that trains under full cross-entropy beside the recorded sets, and the numbers, each
/// among the samples of its kind, of what a step holds. Step s has floor((s + 1) B r) - floor(s B r) general samples, r
/// in millionths; so every step is known without those before it, and the mean is r.
struct StepSamples {
  Range domain, general;
};
[[nodiscard]] StepSamples step_samples(std::int64_t step, std::int64_t global_batch, double general_ratio);

}  // namespace reprise
