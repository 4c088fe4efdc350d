#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/run_config.hpp"
#include "loss/replay_store.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// What a store collected by this run is made from: every key of StoreProvenance, "data.1" ... where data.train names
/// several prefixes.
/// Hashes the model and the data (see cached_sha256_tree); collective over `world` where one is given.
[[nodiscard]] StoreProvenance store_provenance(const RunConfig& config, Communicator* world = nullptr);
/// The same without the keys that cost reading all of the model and the data ("model" and the "data" ones).
[[nodiscard]] StoreProvenance store_settings(const RunConfig& config);

/// Whether training by `expected` may use the store: equal in every key, but that a store may hold longer samples
/// (sequence_length), log-probabilities that nobody reads, and sets that were chosen under another dtype.
/// Throws Error(kStoreMismatch) naming store, keys and both values.
void require_usable_store(const ReplayStoreReader& store, const StoreProvenance& expected);
/// The same on a manifest's provenance; `name` stands for the store in messages.
void require_usable_store(const StoreProvenance& actual, const StoreProvenance& expected, const std::string& name);

/// Sets the dataset_fingerprint of each prefix: of the first as `key`, of the others as `key`.1, `key`.2, ...
/// Collective over `world` where one is given.
void add_data_fingerprints(const std::vector<std::string>& prefixes, const std::string& key, Communicator* world,
                           StoreProvenance& provenance);

/// Where hashes of unchanged files are remembered: $XDG_CACHE_HOME/reprise/hashes.json, else below $HOME/.cache; empty
/// without either.
[[nodiscard]] std::filesystem::path hash_cache_path();

}  // namespace reprise
