#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "optimizer/angle_cap.hpp"
#include "optimizer/optimizer.hpp"
#include "optimizer/ownership.hpp"
#include "optimizer/shard_plan.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise {

/// The one implementation: MoClip and AdamW differ in two kernels, the ZeRO stages in which elements are held
/// (ShardPlan) and when gradients travel. With float storage the parameters are the master weights themselves.
template <class T>
class ShardedOptimizer final : public Optimizer<T> {
 public:
  ShardedOptimizer(const Context& context, const OptimizerOptions& options, ParameterSet<T>& parameters);

  void reduce_gradients(const Context& context, bool last) override;
  StepResult step(const Context& context, double lr, const StepSums& sums) override;
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

  void sum_copies(const Context& context);
  void reduce_bucket(const Context& context, std::size_t bucket, bool last);
  void sum_bucket(const Context& context, std::size_t bucket);
  [[nodiscard]] std::vector<GroupSums> exchange_sums(const Context& context, StepSums& sums);
  /// Fills norm and skipped; returns the step scale s (0 when skipped).
  [[nodiscard]] double decide(const std::vector<GroupSums>& groups, StepResult& result) const;
  [[nodiscard]] std::vector<UpdateScalars> scalars_of_groups(const std::vector<GroupSums>& groups, double lr,
                                                             double scale, AngleStatistics& statistics) const;
  void update(const Context& context, const std::vector<UpdateScalars>& scalars);
  void clear_gradients(const Context& context, bool all);
  void gather_parameters(const Context& context);

  [[nodiscard]] VectorView<float> gradient_of(const Segment& segment);
  [[nodiscard]] VectorView<float> master_of(const Segment& segment);
  [[nodiscard]] OwnedPiece piece_of(const Segment& segment);

  OptimizerOptions options_;
  ParameterSet<T>& parameters_;
  int replicas_, replica_;
  bool is_moclip_;
  AngleCap cap_;
  AngleGroups groups_;
  Ownership ownership_;
  ShardPlan plan_;
  Buffer<float> exp_avg_, exp_avg_sq_;
  Buffer<float> master_;           // empty for float storage
  Buffer<float> shard_gradients_;  // only where gradients are released; laid out like the state
  std::vector<GroupSums> chunk_sums_;
  std::vector<double> gathered_;
  std::int64_t steps_taken_ = 0;
  std::int64_t micro_batches_ = 0;  // of the running step
  bool reduced_ = false;
};

}  // namespace reprise
