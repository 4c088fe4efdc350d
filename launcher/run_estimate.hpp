#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "launcher/run_config.hpp"
#include "layers/decoder_config.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// The micro-batches of a training step on one rank.
struct StepShape {
  double micro_batches = 1.0;                    ///< a step
  double tokens = 0.0, targets = 0.0;            ///< mean of a micro-batch
  std::int64_t max_tokens = 0, max_targets = 0;  ///< of the largest
};

/// Bytes of the rank that needs most, at the worst moment of a step.
struct MemoryEstimate {
  std::int64_t weights = 0;
  std::int64_t gradients = 0;    ///< float32, whole even with ZeRO 2: backward fills them before they are scattered
  std::int64_t optimizer = 0;    ///< master weights (bfloat16 runs) and moments
  std::int64_t activations = 0;  ///< kept for backward, and its scratch
  std::int64_t head = 0;         ///< of the loss
  std::int64_t store = 0;        ///< the replay store, packed
  std::int64_t program = 0;      ///< code, libraries, buffers of MPI and loader
  [[nodiscard]] std::int64_t total() const {
    return weights + gradients + optimizer + activations + head + store + program;
  }
};

/// One kind of collective of a training step, by one rank.
struct WireEstimate {
  std::string group;  ///< "tp", "dp", "world", "kv"
  Collective verb = Collective::kAllReduce;
  std::string what;
  double calls = 0.0;
  double bytes = 0.0;  ///< sent, as CollectiveCount counts them
};

/// What a run on `world_size` ranks needs, from the declarations and layouts that training itself uses; no rank is
/// started. Sizes must be legal (tensor divides the world, heads and ffn divide over tensor).
class RunEstimate {
 public:
  RunEstimate(const DecoderConfig& model, const RunConfig& config, std::int64_t world_size);

  [[nodiscard]] std::int64_t parameters() const { return parameters_; }  ///< of the whole model
  /// As the rank that holds most declares them.
  [[nodiscard]] const std::vector<ParameterSpec>& specs() const { return largest_.specs; }
  /// `store_positions` and `store_ids` of the replay store that every rank keeps; 0 without one.
  [[nodiscard]] MemoryEstimate memory(const StepShape& step, std::int64_t store_positions,
                                      std::int64_t store_ids) const;
  [[nodiscard]] std::vector<WireEstimate> wire(const StepShape& step) const;
  /// Bytes of one checkpoint: float32 master weights and two moments.
  [[nodiscard]] std::int64_t checkpoint_bytes() const { return 3 * 4 * parameters_; }

 private:
  struct RankPlan {
    std::vector<ParameterSpec> specs;
    FlatLayout layout;
  };
  [[nodiscard]] std::int64_t kept_bytes(std::int64_t tokens) const;
  [[nodiscard]] std::int64_t backward_bytes(std::int64_t tokens) const;
  void add_tensor_wire(const StepShape& step, std::vector<WireEstimate>& lines) const;
  void add_head_wire(const StepShape& step, std::vector<WireEstimate>& lines) const;
  void add_data_wire(const StepShape& step, std::vector<WireEstimate>& lines) const;

  DecoderConfig model_;
  RunConfig config_;
  std::int64_t tensor_, data_, element_bytes_;
  bool sequence_parallel_, recompute_;
  std::int64_t parameters_ = 0;
  std::int64_t heads_, kv_heads_, ffn_;  ///< of one rank
  std::int64_t kv_replicas_;
  std::int64_t vocab_rows_ = 0;  ///< of the rank that holds most
  RankPlan largest_;             ///< the rank that holds most
};

/// Bytes on disk and in memory of a replay store, from rates measured on real sets (docs/formats.md).
[[nodiscard]] std::int64_t store_disk_bytes(std::int64_t positions, std::int64_t ids, bool log_probs);
[[nodiscard]] std::int64_t store_memory_bytes(std::int64_t positions, std::int64_t ids, bool log_probs);

}  // namespace reprise
