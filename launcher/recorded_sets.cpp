#include "launcher/recorded_sets.hpp"

#include <algorithm>

#include "launcher/loss_targets.hpp"

namespace reprise {

RecordedSets find_recorded_sets(const MicroBatch& batch, const ReplayStoreReader& store) {
  const LossTargets found = make_loss_targets(batch, &store, Normalization::kToken, 1, MissingSamples::kSkip);
  RecordedSets sets;
  sets.ids = found.tiles.ids;
  sets.begin.assign(batch.row.size(), 0);
  sets.end.assign(batch.row.size(), 0);
  sets.gold_forced.assign(batch.row.size(), 0);
  std::size_t target = 0;
  for (std::size_t i = 0; i < found.row.size(); ++i, ++target) {
    while (batch.row[target] != found.row[i]) ++target;  // both rise
    sets.begin[target] = found.tiles.id_begin[i];
    sets.end[target] = found.tiles.id_begin[i + 1];
  }
  for (std::size_t s = 0; s < batch.sample_id.size(); ++s) {
    if (!store.contains(batch.sample_id[s])) continue;
    const SampleRecords records = store.read(batch.sample_id[s]);
    const auto begin = batch.position.begin() + batch.sample_begin[s];
    const auto end = batch.position.begin() + batch.sample_begin[s + 1];
    for (std::size_t t = 0; t < records.position.size(); ++t) {
      const auto at = std::lower_bound(begin, end, records.position[t]);
      if (at == end || *at != records.position[t]) continue;
      const auto index = static_cast<std::size_t>(at - batch.position.begin());
      sets.gold_forced[index] = (records.flags[t] & SampleRecords::kGoldForced) != 0 ? 1 : 0;
    }
  }
  return sets;
}

}  // namespace reprise
