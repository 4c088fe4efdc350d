#pragma once

#include <cstdint>
#include <vector>

#include "launcher/micro_batch.hpp"
#include "loss/candidate_tiles.hpp"
#include "loss/loss.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

enum class MissingSamples : std::uint8_t { kError, kSkip };

/// The targets of a micro-batch that enter the loss, owned.
struct LossTargets {
  std::vector<std::int32_t> row;
  std::vector<std::int32_t> gold;
  std::vector<float> weight;
  std::vector<std::uint32_t> position;
  std::vector<std::int64_t> sample_begin{0};  ///< [samples of the micro-batch + 1]
  CandidateTilesBuilder tiles;                ///< empty for kFull
  std::int64_t missing_samples = 0;           ///< not in the store (MissingSamples::kSkip)
  std::int64_t total_rows = -1;               ///< tokens of the micro-batch, see LossBatch

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(row.size()); }
  /// Views into this object; `negatives` may be empty.
  [[nodiscard]] LossBatch loss_batch(VectorView<const std::int32_t> negatives = {}) const {
    return {row, gold, weight, tiles.view(), negatives, total_rows};
  }
};

/// Matches the store's records to the targets by (sample, position). A target without a record is dropped; a record
/// whose position is no target here (truncated away) still lends its set to its tile. Without a store (only for kFull)
/// every target is kept. Throws Error(kStoreMismatch) for samples that the store lacks (with their number, unless
/// kSkip), and for a sample whose tokens, mask or gold are not those that were collected.
/// tile_tokens: kTile cuts tiles of that many records; kToken always 1.
[[nodiscard]] LossTargets make_loss_targets(const MicroBatch& batch, const ReplayStoreReader* store,
                                            Normalization normalization, std::int64_t tile_tokens,
                                            MissingSamples missing = MissingSamples::kError);

/// How many samples of the data set have targets but are not in the store.
[[nodiscard]] std::int64_t count_missing_samples(const Dataset& dataset, std::int64_t sequence_length,
                                                 const ReplayStoreReader& store);

}  // namespace reprise
