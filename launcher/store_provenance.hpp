#pragma once

#include <filesystem>
#include <string>

#include "launcher/run_config.hpp"
#include "loss/replay_store.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// What a store collected by this run is made from: every key of StoreProvenance.
/// Hashes the model and the data (see cached_sha256_tree); collective over `world` where one is given.
[[nodiscard]] StoreProvenance store_provenance(const RunConfig& config, Communicator* world = nullptr);
/// The same without the keys that cost reading all of the model and the data ("model" and "data").
[[nodiscard]] StoreProvenance store_settings(const RunConfig& config);

/// Whether training by `expected` may use the store: equal in every key, but that a store may hold longer samples
/// (sequence_length), log-probabilities that nobody reads, and sets that were chosen under another dtype.
/// Throws Error(kStoreMismatch) naming store, keys and both values.
void require_usable_store(const ReplayStoreReader& store, const StoreProvenance& expected);
/// The same on a manifest's provenance; `name` stands for the store in messages.
void require_usable_store(const StoreProvenance& actual, const StoreProvenance& expected, const std::string& name);

/// Where hashes of unchanged files are remembered: $XDG_CACHE_HOME/reprise/hashes.json, else below $HOME/.cache; empty
/// without either.
[[nodiscard]] std::filesystem::path hash_cache_path();

}  // namespace reprise
