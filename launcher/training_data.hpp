#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "launcher/data_loader.hpp"
#include "launcher/loss_targets.hpp"
#include "launcher/run_config.hpp"
#include "loss/replay_store.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

/// One micro-batch with everything that the step needs of it, in host memory.
struct PreparedMicroBatch {
  MicroBatch batch;
  LossTargets targets;
  LossTargets probe;  ///< targets with candidates to be probed; empty in most steps
};

struct PreparedStep {
  std::vector<PreparedMicroBatch> micro_batches;  ///< the same number on every rank; may be empty ones
  std::vector<std::int32_t> negatives;            ///< shared by all ranks
};

/// The training set of a run: data, order, and the replay store that belongs to it.
class TrainingData {
 public:
  /// Opens and checks everything: ids against the vocabulary, the store's provenance (Error(kStoreMismatch)), samples
  /// that the store lacks. Collective over the world.
  TrainingData(const RunConfig& config, std::int64_t vocab_size, const ProcessGroups& groups);

  /// This rank's part of the 0-based `step`. For one thread at a time.
  [[nodiscard]] PreparedStep prepare(std::int64_t step) const;

  [[nodiscard]] const DataStatistics& statistics() const { return loader_.statistics(); }
  /// train.steps, or what train.epochs makes of the data.
  [[nodiscard]] std::int64_t total_steps() const;
  [[nodiscard]] bool has_store() const { return store_ != nullptr; }
  /// Samples that train nothing because the store lacks them (replay.missing = "skip").
  [[nodiscard]] std::int64_t missing_samples() const { return missing_samples_; }
  /// Hashes of model, tokenizer, template and data, and the settings of the collection.
  [[nodiscard]] const StoreProvenance& provenance() const { return provenance_; }

 private:
  [[nodiscard]] bool probes(std::int64_t step) const;

  RunConfig config_;
  std::int64_t vocab_size_;
  IndexedDataset dataset_;
  DataLoader loader_;
  StoreProvenance provenance_;
  std::unique_ptr<ReplayStoreReader> store_;
  std::int64_t missing_samples_ = 0;
};

}  // namespace reprise
