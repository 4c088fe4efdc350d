#pragma once

#include <algorithm>

#include "launcher/joined_dataset.hpp"
#include "launcher/run_config.hpp"
#include "launcher/store_provenance.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

/// Sets of eight ids a target, gold among them.
inline SampleRecords records_of(const Sample& sample) {
  SampleRecords records;
  records.sample_id = sample.id;
  records.sample_hash = sample.hash;
  for (std::int64_t p = 0; p + 1 < sample.size(); ++p) {
    const auto next = static_cast<std::size_t>(p + 1);
    if (sample.mask[next] == 0) continue;
    const auto gold = static_cast<std::uint32_t>(sample.tokens[next]);
    const std::uint32_t first = gold < 8 ? 0 : gold - 7;
    records.position.push_back(static_cast<std::uint32_t>(p));
    records.gold.push_back(gold);
    records.flags.push_back(0);
    records.mass.push_back(0.9f);
    records.confidence.push_back(0.5f);
    for (std::uint32_t id = first; id <= std::max(gold, first + 7); ++id) records.ids.push_back(id);
    records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
  }
  return records;
}

/// The store of config.replay.store, for all of its training data.
inline void write_store(const RunConfig& config) {
  const StoreProvenance provenance = store_provenance(config);
  const IndexedDataset dataset(config.data.train.front());
  {
    ReplayStoreWriter writer(config.replay.store, 0, provenance, 1);
    for (std::int64_t d = 0; d < dataset.size(); ++d) writer.append(records_of(dataset.read(d)));
    writer.commit(1);
  }
  finish_store(config.replay.store, provenance, 1, "{}");
}

}  // namespace reprise
