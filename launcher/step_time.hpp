#pragma once

#include <cstdint>
#include <vector>

#include "launcher/hardware_table.hpp"
#include "launcher/head_time.hpp"

namespace reprise {

/// A decoder as its matrix products see it.
struct TimedModel {
  std::int64_t layers = 1, hidden = 0, ffn = 0;
  std::int64_t mlp_inputs = 2;  ///< projections into the MLP: 2 with a gate, 1 without
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;

  /// Parameters of the layers' products, and those of embedding and head.
  [[nodiscard]] double layer_parameters() const;
  [[nodiscard]] double vocab_parameters() const { return static_cast<double>(vocab) * static_cast<double>(hidden); }
};

/// What backward computes a second time.
enum class TimedRecompute {
  kNone,
  kSelective,  ///< attention alone
  kHalf,       ///< half of the layers, or every second product (torch's selective checkpointing)
  kLayer,      ///< all of forward
};

/// Collectives of one kind in a step, by one rank.
struct Exchange {
  double calls = 0.0, bytes = 0.0;  ///< sent
  std::int64_t ranks = 1, stride = 1;
};

/// All that one rank does in a training step.
struct TimedStep {
  TimedModel model;
  std::int64_t tensor = 1;
  std::int64_t pipeline = 1, virtual_stages = 1;  ///< of published runs; ours has none
  bool sequence_parallel = false;
  double micro_batches = 1.0;
  double tokens = 0.0;  ///< of a micro-batch on one rank
  double pairs = 0.0;   ///< (query, key) pairs of a micro-batch that attention computes: half of length^2 a document
  std::int64_t element_bytes = 2;
  TimedRecompute recompute = TimedRecompute::kNone;
  bool frozen = false;  ///< the layers' weights have no gradients (LoRA, whose own small products are left out)
  TimedHead head;

  double attention_forward = 0.0, attention_backward = 0.0;  ///< FLOP a second that its kernels reach
  double attention_backward_products = 5.0;                  ///< forward makes 2
  double passes = 1.0;                ///< memory passes of what is not a product, relative to fused kernels
  double local_parameters = 0.0;      ///< that the rank holds
  double optimizer_parameters = 0.0;  ///< that it updates
  double optimizer_bytes = 34.0;      ///< read and written to update one

  std::vector<Exchange> tensor_exchanges;
  double tensor_hidden = 0.0;  ///< share of them that runs beside the products
  Exchange gradients, parameters, other;
  bool data_overlapped = true;      ///< gradients beside backward, parameters beside forward
  double gradient_passes = 1.0;     ///< reductions of all gradients in a step, of which the last runs beside backward
  bool parameters_sharded = false;  ///< exchanges are of a micro-batch each and hidden beside all of it (ZeRO 3, FSDP)
};

/// Seconds of a step, by what they are spent on.
struct StepTime {
  double products = 0.0;   ///< of the layers, forward and backward
  double attention = 0.0;  ///< the same
  double passes = 0.0;     ///< norms, rotation, activation, residual, embedding
  double recompute = 0.0;
  double head = 0.0;
  double optimizer = 0.0;
  double tensor_exposed = 0.0;              ///< tensor-parallel collectives that nothing hides
  double data_exposed = 0.0;                ///< data-parallel ones
  double tensor_all = 0.0, data_all = 0.0;  ///< the same with what is hidden
  double bubble = 0.0;                      ///< of a pipeline
  double model_flops = 0.0;                 ///< that the step's mathematics needs, without what is computed twice

  [[nodiscard]] double total() const {
    return products + attention + passes + recompute + head + optimizer + tensor_exposed + data_exposed + bubble;
  }
};

/// The model of docs/scaling.md.
[[nodiscard]] StepTime estimate_step_time(const Hardware& hardware, const TimedStep& step);

/// Seconds of the layers' forward passes of a step, without collectives.
[[nodiscard]] double forward_seconds(const Hardware& hardware, const TimedStep& step);

/// A product of [m, k] and [k, n], storage of `element_bytes`: the longer of the matrix units, whose work is cut into
/// whole tiles over whole waves of multiprocessors and has a ramp of 192 along k, and of memory. `accumulated`: the
/// result is float32 and added to what is there, as weight gradients are.
[[nodiscard]] double product_seconds(const Hardware& hardware, double m, double n, double k, std::int64_t element_bytes,
                                     bool accumulated = false);

}  // namespace reprise
