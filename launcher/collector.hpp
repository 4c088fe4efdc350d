#pragma once

#include <filesystem>

#include "launcher/dataset.hpp"
#include "launcher/model_session.hpp"
#include "launcher/run_config.hpp"
#include "loss/replay_store.hpp"
#include "loss/top_k.hpp"

namespace reprise {

/// What a collection has come to.
struct Collected {
  CollectStatistics statistics;  ///< over all ranks and all parts of a resumed collection
  bool stopped = false;          ///< asked to stop before the end; everything done so far is committed
};

/// Stage 0 over a data set: units of kSamplesPerUnit samples go round robin to the dp ranks; each world rank writes the
/// records of the samples it owns to shards of its own and commits every few units, with its statistics beside them.
/// Goes on behind the last commit of every rank; the same layout as before is needed for that (Error(kUsage)).
/// Does not finish the store. Collective over the world.
template <class T>
[[nodiscard]] Collected collect(Session& session, const RunConfig& config, const LoadedModel<T>& model,
                                const Dataset& dataset, const StoreProvenance& provenance);

/// Removes the statistics of the ranks, once they stand in the manifest.
void remove_partial_statistics(const std::filesystem::path& store, int writers);

}  // namespace reprise
