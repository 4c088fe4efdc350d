#pragma once

#include <memory>

#include "core/buffer.hpp"
#include "core/stopwatch.hpp"
#include "launcher/bucket_traffic.hpp"
#include "launcher/metrics.hpp"
#include "launcher/model_session.hpp"
#include "launcher/run_config.hpp"
#include "launcher/training_data.hpp"
#include "loss/loss.hpp"
#include "optimizer/optimizer.hpp"

namespace reprise {

/// What a step tells beside its metrics.
struct StepOutcome {
  StepMetrics metrics;  ///< without step, step_ms, tokens_per_second and memory_bytes
  bool stop = false;    ///< some rank was asked to stop: all learn it in the same step
};

/// The arithmetic of one training step, without files: micro-batches forward and backward, then the optimizer. With
/// parallel.overlap the gradients' reduction runs beside the last micro-batch's backward and the parameters' all-gather
/// beside the next step's forward (BucketTraffic).
///
/// On a GPU the host waits once a step, for the optimizer's decision, and once more where a step is probed. Losses stay
/// on the device until then; staged collectives wait as they must.
///
/// Gradients are of sum w l over the global batch; 1 / sum w enters in the optimizer. A rank whose micro-batch is empty
/// takes part in the data-parallel collectives only, which is all that the other ranks expect of it: a tensor-parallel
/// group shares its batches. Hidden states that are not finite make all ranks skip the step.
template <class T>
class Trainer {
 public:
  /// `model` (trainable) is not owned; its parameters become the master weights. Collective.
  Trainer(Session& session, const RunConfig& config, LoadedModel<T>& model);

  /// One step. `stop`: this rank was asked to stop. Collective over the world. Parameters may still be on their way
  /// afterwards: `settle` comes before whatever else than the next step reads them.
  StepOutcome step(const PreparedStep& prepared, double lr, bool stop);
  /// The stream waits for the parameters of the last step; its arena is empty afterwards.
  void settle();

  /// Makes the gradient of the running step non-finite, so that all ranks skip it.
  void poison_gradient();

  [[nodiscard]] Optimizer<T>& optimizer() { return *optimizer_; }

 private:
  /// Where a micro-batch stands among those of its step.
  struct Place {
    std::size_t index = 0;
    bool last = false;
  };
  void accumulate(const Context& context, const PreparedMicroBatch& micro, VectorView<const std::int32_t> negatives,
                  Place place, StepSums& sums);
  /// Forward and backward of the loss; false where the hidden states are not finite and the host knows.
  [[nodiscard]] bool head(const Context& context, MatrixView<const T> hidden, HeadLoss<T>& loss, const LossBatch& batch,
                          MatrixView<T> d_hidden, Place place, StepSums& sums);
  void probe(const Context& context, MatrixView<const T> hidden, const LossBatch& batch, StepSums& sums);

  Session& session_;
  LoadedModel<T>& model_;
  Recompute recompute_;
  std::unique_ptr<HeadLoss<T>> loss_, general_loss_;  // the latter null without data.general
  std::unique_ptr<Stopwatch> head_time_;
  std::unique_ptr<Optimizer<T>> optimizer_;
  BucketTraffic<T> traffic_;
  Buffer<double> losses_;  // sum w l of each micro-batch of the running step
};

}  // namespace reprise
