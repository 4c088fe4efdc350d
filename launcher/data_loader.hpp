#pragma once

#include <cstdint>
#include <vector>

#include "launcher/joined_dataset.hpp"
#include "launcher/micro_batch.hpp"
#include "launcher/sample_order.hpp"
#include "parallel/shard.hpp"

namespace reprise {

struct DataLoaderOptions {
  std::int64_t sequence_length = 512;  ///< predicting tokens of a sample at most; longer ones are truncated
  std::int64_t global_batch = 32;      ///< samples per step over all dp ranks, a multiple of dp_size
  std::int64_t micro_batch = 4;        ///< rows per micro-batch
  bool pack = false;                   ///< several samples a row, up to sequence_length; else one sample a row
  bool shuffle = true;
  std::uint64_t seed = 1;
  int dp_rank = 0, dp_size = 1;
};

/// What a data set holds at one sequence length; the same on every rank.
struct DataStatistics {
  std::int64_t samples = 0;
  std::int64_t tokens = 0;           ///< predicting tokens, after truncation
  std::int64_t targets = 0;          ///< of them, those that train
  std::int64_t truncated = 0;        ///< samples longer than sequence_length + 1
  std::int64_t without_targets = 0;  ///< samples that train nothing; they take their place in a batch but do no work
  std::int64_t longest = 0;          ///< tokens of the longest sample, before truncation
};

/// Counts a data set. Reads every mask once. Throws Error(kData) for data without any target.
[[nodiscard]] DataStatistics count_data(const Dataset& dataset, std::int64_t sequence_length);
/// The same of each prefix, and of all of them together.
[[nodiscard]] std::vector<DataStatistics> count_parts(const JoinedDataset& dataset, std::int64_t sequence_length);
[[nodiscard]] DataStatistics sum_of(const std::vector<DataStatistics>& parts);

/// The cut of training samples into micro-batches.
///
/// SampleOrder says which document is sample n of the run (n = 0, 1, ...; the cursor counts these). The samples of a
/// step, [first, first + count), are split over dp ranks contiguously; a rank's share is packed first-fit in order into
/// rows of at most sequence_length tokens, micro_batch rows make a micro-batch. Every rank of the job has the same
/// number of micro-batches: the largest over dp, the rest empty; all orders and lengths are known everywhere, so
/// nothing is exchanged.
class DataLoader {
 public:
  /// Throws Error(kUsage) for options out of range. `dataset`, whose documents `order` numbers, is not owned.
  DataLoader(const Dataset& dataset, const DataLoaderOptions& options, SampleOrder order);
  /// One prefix, in the order of options.shuffle and options.seed.
  DataLoader(const Dataset& dataset, const DataLoaderOptions& options);

  /// The documents of one dp rank's micro-batches in one step.
  struct Plan {
    std::vector<std::vector<std::int64_t>> documents;  ///< [micro-batches][documents]
    [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(documents.size()); }
  };

  [[nodiscard]] const DataLoaderOptions& options() const { return options_; }
  [[nodiscard]] const SampleOrder& order() const { return order_; }
  /// This rank's part of the samples of a step.
  [[nodiscard]] Plan plan(Range samples) const;
  /// The same of global_batch samples from `first` on.
  [[nodiscard]] Plan plan(std::int64_t first) const { return plan({first, first + options_.global_batch}); }
  [[nodiscard]] MicroBatch load(const Plan& plan, std::int64_t index) const;

 private:
  [[nodiscard]] std::vector<std::vector<std::int64_t>> rows_of(Range samples) const;

  const Dataset& dataset_;
  DataLoaderOptions options_;
  SampleOrder order_;
};

/// Samples in one unit of work of a collection or an evaluation: fixed, so that a resumed collection forms the same
/// batches. Unit u goes to dp rank u % dp_size.
inline constexpr std::int64_t kSamplesPerUnit = 64;
[[nodiscard]] std::int64_t num_units(const Dataset& dataset);
/// The micro-batches of a unit, `micro_batch` samples each, in document order; samples without targets are left out
/// (a unit may be empty).
[[nodiscard]] std::vector<MicroBatch> load_unit(const Dataset& dataset, std::int64_t unit, std::int64_t micro_batch,
                                                std::int64_t sequence_length);

}  // namespace reprise
