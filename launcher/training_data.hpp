#pragma once

#include <cstdint>
#include <memory>
#include <optional>
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
  LossTargets probe;     ///< targets with candidates to be probed; empty in most steps
  bool general = false;  ///< of data.general: full cross-entropy on every target, whatever the run's normalization
};

struct PreparedStep {
  /// The same number on every rank, those of data.general last; may be empty ones.
  std::vector<PreparedMicroBatch> micro_batches;
  std::vector<std::int32_t> negatives;  ///< shared by all ranks
};

/// The loaders of data.train and data.general of a run, on one data-parallel rank.
[[nodiscard]] DataLoader make_domain_loader(const JoinedDataset& dataset, const RunConfig& config, int dp_rank,
                                            int dp_size);
/// Ranks from the last to the first, so that those with a sample less of one kind have the odd one of the other.
[[nodiscard]] DataLoader make_general_loader(const JoinedDataset& dataset, const RunConfig& config, int dp_rank,
                                             int dp_size);

/// The training set of a run: data, order, and the replay store that belongs to it.
class TrainingData {
 public:
  /// Opens and checks everything: ids against the vocabulary, the store's provenance (Error(kStoreMismatch)), samples
  /// that the store lacks. Collective over the world.
  TrainingData(const RunConfig& config, std::int64_t vocab_size, const ProcessGroups& groups);

  /// This rank's part of the 0-based `step`. For one thread at a time.
  [[nodiscard]] PreparedStep prepare(std::int64_t step) const;

  /// Of each prefix of data.train.
  [[nodiscard]] const std::vector<DataStatistics>& statistics() const { return statistics_; }
  /// Of each prefix of data.general.
  [[nodiscard]] const std::vector<DataStatistics>& general_statistics() const { return general_statistics_; }
  /// Part of the training samples of data.train that come from its prefix `index`.
  [[nodiscard]] double share(std::size_t index) const { return loader_.order().share(index); }
  /// train.steps, or what train.epochs makes of the data.
  [[nodiscard]] std::int64_t total_steps() const;
  [[nodiscard]] bool has_store() const { return store_ != nullptr; }
  [[nodiscard]] const ReplayStoreReader& store() const { return *store_; }  ///< not while `prepare` runs
  /// Samples that train nothing because the store lacks them (replay.missing = "skip").
  [[nodiscard]] std::int64_t missing_samples() const { return missing_samples_; }
  /// Hashes of model, tokenizer, template and all data, and the settings of the collection.
  [[nodiscard]] const StoreProvenance& provenance() const { return provenance_; }

 private:
  [[nodiscard]] bool probes(std::int64_t step) const;
  void open_store();
  void add_domain(std::int64_t step, Range samples, PreparedStep& prepared) const;
  void add_general(Range samples, PreparedStep& prepared) const;

  RunConfig config_;
  std::int64_t vocab_size_;
  JoinedDataset dataset_, general_;
  std::vector<DataStatistics> statistics_, general_statistics_;
  DataLoader loader_;
  std::optional<DataLoader> general_loader_;
  StoreProvenance provenance_;
  std::unique_ptr<ReplayStoreReader> store_;
  std::int64_t missing_samples_ = 0;
};

}  // namespace reprise
