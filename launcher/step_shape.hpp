#pragma once

#include <cstdint>

#include "launcher/memory_estimate.hpp"
#include "launcher/run_config.hpp"
#include "launcher/run_shape.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

/// The micro-batches of a run of `steps` steps on `data_size` data-parallel ranks, by the loaders that training uses;
/// ids of the data are checked against `vocab_size`. Of a short run every step of every rank is looked at; of a long
/// one some are, and the largest micro-batch is taken to hold the longest sample in every row.
[[nodiscard]] StepShape measure_step_shape(const RunConfig& config, std::int64_t vocab_size, std::int64_t data_size,
                                           std::int64_t steps);

/// Size of a store, and what its sets cost a target in the tiles of this run, from some samples.
[[nodiscard]] StoreShape measure_store_shape(const ReplayStoreReader& store, const RunConfig& config);

}  // namespace reprise
