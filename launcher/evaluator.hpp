#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "launcher/commands.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/progress.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

struct EvaluationOptions {
  std::int64_t sequence_length = 512;
  std::int64_t micro_batch = 8;  ///< samples
  /// Gets the log-probabilities of all targets, in data order and in pieces, on every rank; costs an all-gather of
  /// them.
  std::function<void(std::span<const float>)> on_log_probs;
  Progress* progress = nullptr;  ///< counts samples
};

/// Mean negative log-likelihood (nats) over all target tokens of a data set, each with weight 1, under the full
/// vocabulary. Units of kSamplesPerUnit samples go round robin to the dp ranks; their float64 sums are added in unit
/// order, so the layout changes the result by the rounding inside a unit only. Collective over the world: per round of
/// units one small all-gather over dp. Throws Error(kData) for data without any target. The arena is used and rewound.
template <class T>
[[nodiscard]] EvalResult evaluate(Session& session, const DecoderModel<T>& model, const IndexedDataset& dataset,
                                  const EvaluationOptions& options);

}  // namespace reprise
