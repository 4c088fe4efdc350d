#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "launcher/dataset.hpp"
#include "launcher/progress.hpp"
#include "launcher/session.hpp"
#include "layers/decoder_model.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

/// Of one sample, or of all of them.
struct SampleScore {
  std::int64_t document = 0;  ///< its index in the data set
  std::int64_t tokens = 0;    ///< targets
  double log_prob = 0.0;      ///< sum over the targets, nats
  std::int64_t top = 0;       ///< targets that no other token beats
  // With a store: the targets that it has a set for.
  std::int64_t recorded = 0;
  double outside = 0.0;           ///< sum of the probability outside their sets
  std::int64_t gold_outside = 0;  ///< sets that gold was forced into when they were collected

  [[nodiscard]] double loss() const { return -log_prob / static_cast<double>(tokens); }
  [[nodiscard]] double top_share() const { return static_cast<double>(top) / static_cast<double>(tokens); }
};

struct EvaluationOptions {
  std::int64_t sequence_length = 512;
  std::int64_t micro_batch = 8;              ///< samples
  const ReplayStoreReader* store = nullptr;  ///< of which the mass outside the recorded sets is measured
  /// Gets the log-probabilities of all targets, in data order and in pieces, on every rank; costs an all-gather of
  /// them.
  std::function<void(std::span<const float>)> on_log_probs;
  /// Gets every sample that has a target, in data order, on every rank.
  std::function<void(const SampleScore&)> on_sample;
  Progress* progress = nullptr;  ///< counts samples
};

/// Probability outside the recorded sets, under the whole vocabulary of the model that is evaluated.
struct OutsideMass {
  static constexpr std::array kQuantiles{0.5, 0.9, 0.99};

  double mean = 0.0;
  std::array<double, kQuantiles.size()> quantiles{};  ///< of tokens; within 1.2 %, 0 below 1e-8
  double gold_outside_rate = 0.0;                     ///< sets that gold was forced into
  std::int64_t tokens = 0;                            ///< that have a set
};

struct EvalResult {
  double loss = 0.0;                   ///< mean negative log-likelihood per target token, nats
  double top1 = 0.0;                   ///< share of the targets whose logit no other exceeds
  std::int64_t tokens = 0;             ///< targets
  std::int64_t samples = 0;            ///< that have a target
  std::optional<OutsideMass> outside;  ///< with a store that has sets for some of the targets
};

/// Loss and accuracy over all target tokens of a data set, each with weight 1, under the full vocabulary. Units of
/// kSamplesPerUnit samples go round robin to the dp ranks; sums of a sample, in float64, are added in data order on
/// every rank, so the layout changes the result by the rounding of a token's log-probability only.
/// Collective over the world: per round of units one all-gather over dp of 56 bytes per sample; per micro-batch see
/// measure_targets. Throws Error(kData) for data without any target, Error(kStoreMismatch) where the store was
/// collected from other tokens. The arena is used and rewound: activations of one micro-batch, and blocks of logits.
template <class T>
[[nodiscard]] EvalResult evaluate(Session& session, const DecoderModel<T>& model, const Dataset& dataset,
                                  const EvaluationOptions& options);

}  // namespace reprise
