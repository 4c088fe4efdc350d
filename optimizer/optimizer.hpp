#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

enum class AngleScope : std::uint8_t { kTensor, kLayer, kGlobal };
/// What becomes of a gradient at more than 90 degrees from the momentum.
enum class Obtuse : std::uint8_t { kKeep, kDrop, kProject, kReflect, kRotate };

struct OptimizerOptions {
  std::string name = "moclip";  ///< or "adamw"
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;  ///< adamw only
  double weight_decay = 0.0;
  double clip_norm = 1.0;   ///< 0 = off
  double max_angle = 45.0;  ///< degrees, in (0, 90] or 180 = off
  AngleScope angle_scope = AngleScope::kTensor;
  Obtuse obtuse = Obtuse::kKeep;
  int zero_stage = 1;  ///< 0, 1, 2
};

/// What the trainer sends along in the step's one collective of scalars; summed over ranks. Only tp rank 0 fills it
/// (the values are the same on its whole tensor-parallel group).
struct StepSums {
  double weight = 0.0;         ///< sum w of this rank's samples
  double weighted_loss = 0.0;  ///< sum w l
  double tokens = 0.0;
  double stop = 0.0;  ///< > 0 on any rank: finish after this step
  double probe_mass = 0.0;
  double probe_tokens = 0.0;
  double error = 0.0;  ///< > 0 on any rank: the step is skipped
  double reserved = 0.0;
};

struct AngleStatistics {
  double mean = 0.0, max = 0.0;       ///< degrees, over groups where both g and m are nonzero
  std::array<double, 5> quantiles{};  ///< 5, 25, 50, 75, 95 %
  double clipped_share = 0.0;         ///< groups whose gradient was turned
  std::int64_t groups = 0;
};

struct StepResult {
  StepSums sums;           ///< over all ranks
  double grad_norm = 0.0;  ///< |G| / sum w, before clipping; not finite where G is not, 0 when sum w = 0
  bool skipped = false;    ///< non-finite, an error, or sum w = 0: state untouched bit for bit
  AngleStatistics angles;  ///< moclip only
};

/// A (parameter, range) that this rank owns of the optimizer's state: what a checkpoint writes and loads. Frozen
/// parameters have none: they are the loaded model's.
struct OwnedPiece {
  std::int64_t parameter = 0;                     ///< index in the ParameterSet
  Range local;                                    ///< elements of this rank's row-major block of the parameter
  VectorView<float> master, exp_avg, exp_avg_sq;  ///< [local.size()] each, on the device of the optimizer's stream
};

/// ZeRO-sharded optimizer over one ParameterSet.
///
/// Stage 0 replicates state and update; 1 shards master weights and moments over dp; 2 also keeps only this rank's
/// shard of the summed gradients between micro-batches.
/// Stages 0 and 1 always give the same bits, and stage 2 the same again where a step has one micro-batch or dp_size is
/// 1. With more, stage 2 adds over ranks first and over micro-batches second, the others the other way round: the
/// gradients differ by float32 rounding of that order (docs/numerics.md). Each stage repeats its own bits.
/// The gradients handed in are of sum w l (unnormalised, DESIGN 2); the step works with s G,
/// s = min(1, clip_norm sum w / |G|) / sum w.
template <class T>
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// After each micro-batch's backward; `last` for the final one. Stage 2 reduce-scatters and releases gradients every
  /// time, stages 0 and 1 only at the last.
  virtual void reduce_gradients(const Context& context, bool last) = 0;
  /// Reduces one bucket ahead of reduce_gradients(last), once the last micro-batch's backward will add nothing more to
  /// it, so that its traffic hides behind the backward of other layers. Every dp rank names the same buckets in the
  /// same order; those with sum_over_tp cannot be named, because their copies are added first. `context` may have a
  /// stream (and then an arena) of its own: it must wait for the bucket's gradients, and the stream of reduce_gradients
  /// for it.
  virtual void reduce_ahead(const Context& context, std::int64_t bucket) = 0;

  /// After reduce_gradients(last). One all-gather of 4 float64 per group + 8 over the world, summed in rank order; then
  /// the fused update of the owned shard. Zeroes the gradients. `device_losses`, on the stream's device, are added to
  /// sums.weighted_loss there, in order.
  /// The host waits until the step is decided; the update may still be on its way on the stream. After a step that was
  /// not skipped the other ranks' shards of the parameters are old until gather_parameters.
  virtual StepResult update(const Context& context, double lr, const StepSums& sums,
                            VectorView<const double> device_losses) = 0;
  /// After an update that was not skipped: the all-gather over dp of one bucket's parameters. Every rank names every
  /// bucket once, in the same order. `context` may have a stream of its own, which must wait for that of update.
  virtual void gather_parameters(const Context& context, std::int64_t bucket) = 0;
  /// Both, one after the other.
  StepResult step(const Context& context, double lr, const StepSums& sums) {
    const StepResult result = update(context, lr, sums, {});
    if (!result.skipped) gather_all_parameters(context);
    return result;
  }

  /// Takes the parameters' present values as master weights (after loading a model); moments stay.
  virtual void set_master_from_parameters() = 0;
  /// Writes the master weights back into the parameters of every rank (after loading a checkpoint). Collective (dp).
  virtual void publish_parameters(const Context& context) = 0;
  /// Pieces owned by this rank, so that the pieces of all ranks cover every parameter that is not frozen exactly once.
  [[nodiscard]] virtual std::vector<OwnedPiece> owned_pieces() = 0;
  /// The same ranges plus those that this rank holds as a copy (stage 0, tensor-parallel duplicates): what loading
  /// fills.
  [[nodiscard]] virtual std::vector<OwnedPiece> held_pieces() = 0;

  /// Steps taken that were not skipped: drives the bias correction; part of a checkpoint.
  [[nodiscard]] virtual std::int64_t steps_taken() const = 0;
  virtual void set_steps_taken(std::int64_t steps) = 0;
  /// Names of the angle groups in order.
  [[nodiscard]] virtual const std::vector<std::string>& group_names() const = 0;
  [[nodiscard]] virtual std::int64_t state_bytes() const = 0;

 protected:
  virtual void gather_all_parameters(const Context& context) = 0;
};

/// Builds the ownership manifest and checks it over all ranks: the sum of owned element counts per parameter equals its
/// logical size (Error(kInternal) naming the parameter). Collective over the world. Throws Error(kUsage) for options
/// out of range. Parameters must be allocated.
template <class T>
[[nodiscard]] std::unique_ptr<Optimizer<T>> make_optimizer(const Context& context, const OptimizerOptions& options,
                                                           ParameterSet<T>& parameters);

/// "tensor", "layer", "global"; throws Error(kUsage) with the legal names.
[[nodiscard]] AngleScope parse_angle_scope(const std::string& name);
[[nodiscard]] Obtuse parse_obtuse(const std::string& name);

}  // namespace reprise
