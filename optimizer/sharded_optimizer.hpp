#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/stream_event.hpp"
#include "core/transfer.hpp"
#include "optimizer/angle_cap.hpp"
#include "optimizer/copy_ranges.hpp"
#include "optimizer/optimizer.hpp"
#include "optimizer/ownership.hpp"
#include "optimizer/shard_plan.hpp"
#include "optimizer/step_rule.hpp"
#include "optimizer/update_kernels.hpp"

namespace reprise {

/// A step's sums, scalars and decision on the stream's device, and where the host reads the last.
struct StepBuffers {
  /// `slots` of chunk sums in the groups of `begin` ([groups + 1]), over `ranks` ranks.
  StepBuffers(const Stream& stream, const std::vector<std::int64_t>& begin, int ranks);
  [[nodiscard]] StepOutcome outcome();

  Buffer<std::int64_t> group_begin;
  Buffer<GroupSums> chunk_sums;          // [slots]
  Buffer<double> own, gathered, totals;  // [4 groups + 8], once per rank, [4 groups + 8]
  Buffer<UpdateScalars> scalars;         // [groups]
  Buffer<Turn> turns;                    // [groups]
  Buffer<StepDecision> decision;         // [1]
  HostBuffer<Turn> read_turns;
  HostBuffer<StepDecision> read_decision;
  std::unique_ptr<StreamEvent> decided;
};

/// The one implementation: MoClip and AdamW differ in two kernels, the ZeRO stages in which elements are held
/// (ShardPlan) and when gradients travel. With float storage the parameters are the master weights themselves.
/// All state lies on the device of the context's stream. On a GPU the update is launched before the host knows whether
/// the step is taken: the device decides (decide_step), and the host waits once a step, for that decision alone, while
/// the update runs.
template <class T>
class ShardedOptimizer final : public Optimizer<T> {
 public:
  ShardedOptimizer(const Context& context, const OptimizerOptions& options, ParameterSet<T>& parameters);

  void reduce_gradients(const Context& context, bool last) override;
  void reduce_ahead(const Context& context, std::int64_t bucket) override;
  StepResult update(const Context& context, double lr, const StepSums& sums,
                    VectorView<const double> device_losses) override;
  void gather_parameters(const Context& context, std::int64_t bucket) override;
  void set_master_from_parameters() override;
  void publish_parameters(const Context& context) override;
  [[nodiscard]] std::vector<OwnedPiece> owned_pieces() override;
  [[nodiscard]] std::vector<OwnedPiece> held_pieces() override;
  [[nodiscard]] std::int64_t steps_taken() const override { return steps_taken_; }
  void set_steps_taken(std::int64_t steps) override;
  [[nodiscard]] const std::vector<std::string>& group_names() const override { return groups_.names; }
  [[nodiscard]] std::int64_t state_bytes() const override;

 private:
  /// Stage 2 with several replicas: gradients leave after every micro-batch.
  [[nodiscard]] bool releases_gradients() const { return options_.zero_stage == 2 && replicas_ > 1; }
  [[nodiscard]] bool replicated() const { return options_.zero_stage == 0; }

  void find_copies(const Context& context);
  void sum_copies(const Context& context);
  void reduce_bucket(const Context& context, std::size_t bucket, bool last);
  /// Launches everything up to the update; step_.decided is when step_.read_decision is there.
  void launch_update(const Context& context, double lr, const StepSums& sums, VectorView<const double> device_losses);
  void gather_all_parameters(const Context& context) override;
  void copy_to_master(const Stream& stream);

  [[nodiscard]] UpdateRule rule() const { return is_moclip_ ? UpdateRule::kMoClip : UpdateRule::kAdamW; }
  [[nodiscard]] UpdateState state();
  [[nodiscard]] VectorView<float> master_of(const Segment& segment);
  [[nodiscard]] OwnedPiece piece_of(const Segment& segment);

  OptimizerOptions options_;
  ParameterSet<T>& parameters_;
  int replicas_, replica_;
  bool is_moclip_;
  AngleCap cap_;
  AngleGroups groups_;
  Ownership ownership_;
  /// Copies that are summed with one all-reduce.
  struct PackedCopies {
    Communicator* group;
    std::int64_t size;
    Buffer<CopyRange> ranges;
  };
  std::vector<PackedCopies> copies_;
  ShardPlan plan_;
  UpdateTable table_;
  Stream stream_;  // of the state's device
  Buffer<float> exp_avg_, exp_avg_sq_;
  Buffer<float> master_;           // empty for float storage
  Buffer<float> shard_gradients_;  // only where gradients are released; laid out like the state
  Buffer<UpdateChunk> chunks_;     // of table_
  StepBuffers step_;
  std::int64_t steps_taken_ = 0;
  std::int64_t micro_batches_ = 0;   // of the running step, whole ones
  std::vector<bool> reduced_ahead_;  // by bucket
  bool reduced_ = false;
};

}  // namespace reprise
