#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/hardware_table.hpp"
#include "launcher/memory_estimate.hpp"
#include "launcher/plan_step.hpp"

namespace reprise {

struct PlanOptions {
  std::int64_t world_size = 1;
  std::string hardware = "h100";
  std::int64_t tokens_per_step = 0;  ///< over all ranks; 0: from the data where it is there, else full rows
  double targets_share = 0.0;        ///< of the tokens; 0: from the data, else every token
  std::int64_t data_tokens = 0;      ///< of the training data; 0: from the data, else not known
};

/// What is known of the training data.
struct PlannedData {
  bool read = false;  ///< from the files
  double sample_tokens = 0.0, targets_share = 1.0;
  double pairs_a_token = 0.0;            ///< (query, key) pairs that attention computes: half the length of its sample
  std::int64_t samples = 0, tokens = 0;  ///< 0 = not known
  std::int64_t longest = 0;              ///< predicting tokens of the longest sample
};

/// The run with one kind of loss head.
struct HeadPlan {
  std::string name;  ///< "full", "token", "tile"
  StepTime time;
  MemoryEstimate memory;
};

/// Everything that `plan` says.
struct Plan {
  DecoderConfig model;
  std::int64_t parameters = 0;
  std::int64_t world_size = 1, tensor = 1, data = 1;
  Hardware hardware;
  PlannedData dataset;
  StepShape step;
  double set_size = 100.0;

  StoreShape store;  ///< all 0 where the data is not known, or without a store
  std::int64_t store_bytes = 0;
  std::vector<WireEstimate> wire;
  std::vector<HeadPlan> heads;  ///< the run's own first, then the others
  bool fits = false;            ///< what lies on the device, into it
  std::string fit;              ///< the same as a sentence, and where nothing fits what would

  std::int64_t steps = 0;  ///< 0 = not known
  double collect_seconds = 0.0, train_seconds = 0.0;
  std::vector<std::string> notes;

  [[nodiscard]] const StepTime& time() const { return heads.front().time; }
  [[nodiscard]] const MemoryEstimate& memory() const { return heads.front().memory; }
  /// Over all ranks.
  [[nodiscard]] double tokens_per_step() const;
  /// Of the rate of dense products on the data sheet, by the work that the run's own head needs.
  [[nodiscard]] double utilisation() const;
};

/// Plans from config.json and the run file alone; reads the training data where its files exist. Allocates and starts
/// nothing. Throws Error(kUsage) for a layout that does not divide.
[[nodiscard]] Plan make_plan(const RunConfig& config, const PlanOptions& options);

/// One layout of the same run.
struct SweepRow {
  std::int64_t tensor = 1, data = 1, micro_batch = 1, zero_stage = 1;
  std::string recompute;
  double step_seconds = 0.0, tokens_per_second_per_rank = 0.0;
  MemoryEstimate memory;
  bool across_nodes = false;  ///< the ranks of one copy of the model do not share a node
};
struct Sweep {
  std::int64_t tried = 0, fitting = 0;
  std::int64_t least_bytes = 0;  ///< on the device, of the layout that needs least
  SweepRow least;
  std::int64_t state_bytes = 0;  ///< weights, gradients and optimizer over all ranks evenly: what no layout goes below
  std::vector<SweepRow> rows;    ///< those that fit, fastest first
};
/// Every tensor size, micro-batch, recomputation and ZeRO stage that divides, with sequence parallelism where tensor
/// is above 1; all else as in the run file.
[[nodiscard]] Sweep sweep_layouts(const RunConfig& config, const PlanOptions& options);

/// Why none of a sweep fits, as a sentence: for want of ranks, or of pipeline parallelism.
[[nodiscard]] std::string misfit(const Sweep& sweep, const Hardware& hardware);

/// Bytes that a rank may use where it computes: the card's, less what driver and libraries keep.
[[nodiscard]] double usable_bytes(const Hardware& hardware);

}  // namespace reprise
