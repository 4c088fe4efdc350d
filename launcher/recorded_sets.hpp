#pragma once

#include <cstdint>
#include <vector>

#include "launcher/micro_batch.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

/// The sets S_t that a store recorded for the targets of a micro-batch, owned.
struct RecordedSets {
  std::vector<std::int64_t> begin, end;   ///< [targets] token t's set is ids[begin, end); empty: not recorded
  std::vector<std::int32_t> ids;          ///< sorted within a set
  std::vector<std::uint8_t> gold_forced;  ///< [targets] gold lay outside the set that was selected

  [[nodiscard]] bool has_set(std::size_t target) const { return begin[target] < end[target]; }
};

/// By (sample, position), as make_loss_targets matches them. Throws Error(kStoreMismatch) for a sample whose tokens,
/// mask or gold are not those that were collected.
[[nodiscard]] RecordedSets find_recorded_sets(const MicroBatch& batch, const ReplayStoreReader& store);

}  // namespace reprise
