#pragma once

#include <cstdint>
#include <vector>

#include "core/parameter.hpp"
#include "launcher/run_config.hpp"
#include "layers/decoder_config.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

/// The micro-batches of a training step on one rank.
struct StepShape {
  double micro_batches = 1.0;                    ///< a step
  double tokens = 0.0, targets = 0.0;            ///< mean of a micro-batch
  std::int64_t max_tokens = 0, max_targets = 0;  ///< of the largest
  std::int64_t longest = 0;                      ///< tokens of the longest document; 0 = data.sequence_length
  std::int64_t eval_tokens = 0;                  ///< of the largest micro-batch of an evaluation; 0 = there is none
};

/// What a run on `world_size` ranks is made of, from the declarations and layouts that training itself uses: what its
/// memory, its collectives and its time are estimated from. Nothing is allocated and no rank is started, so that it
/// costs milliseconds for any model and world. Sizes must be legal (tensor divides the world, heads and ffn divide over
/// tensor).
struct RunShape {
  RunShape(const DecoderConfig& model, const RunConfig& config, std::int64_t world_size);

  DecoderConfig model;
  RunConfig config;
  std::int64_t tensor, data;   ///< ranks that share one copy of the model, copies
  std::int64_t element_bytes;  ///< of parameters and activations
  bool sequence_parallel;
  std::int64_t heads, kv_heads, ffn;  ///< of one rank
  std::int64_t kv_replicas;           ///< ranks that hold the same key/value heads
  std::int64_t vocab_rows;            ///< of the rank that holds most
  std::int64_t parameters = 0;        ///< of the whole model
  std::int64_t trained = 0;           ///< of them, or of its adapters, those that are trained
  // As the rank that holds most declares and lays them out.
  std::vector<ParameterSpec> base;   ///< the model's own
  std::vector<ParameterSpec> specs;  ///< what is trained: the same, or the adapters of a LoRA run
  FlatLayout base_layout, layout;

  [[nodiscard]] bool adapts() const { return lora_rank > 0; }
  std::int64_t lora_rank = 0;

  /// Bytes of one checkpoint: float32 master weights and two moments.
  [[nodiscard]] std::int64_t checkpoint_bytes() const { return 3 * 4 * trained; }
};

/// train.recompute.
[[nodiscard]] Recompute recompute_of(const RunConfig& config);

}  // namespace reprise
