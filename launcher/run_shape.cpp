#include "launcher/run_shape.hpp"

#include <algorithm>

#include "core/math.hpp"
#include "launcher/model_session.hpp"
#include "launcher/peft_adapter.hpp"
#include "launcher/plan_communicator.hpp"

namespace reprise {

RunShape::RunShape(const DecoderConfig& model_config, const RunConfig& run_config, std::int64_t world_size)
    : model(model_config),
      config(with_adapter_settings(run_config)),
      tensor(config.parallel.tensor),
      data(div_exact(world_size, tensor)),
      element_bytes(config.model.dtype == "bfloat16" ? 2 : 4),
      sequence_parallel(config.parallel.sequence_parallel && tensor > 1),
      heads(model.num_heads / tensor),
      kv_heads(std::max<std::int64_t>(1, model.num_kv_heads / tensor)),
      ffn(model.ffn_hidden_size / tensor),
      kv_replicas(std::max<std::int64_t>(1, tensor / model.num_kv_heads)) {
  const VocabPartition vocab = VocabPartition::even(model.vocab_rows(), model.vocab_size, static_cast<int>(tensor));
  vocab_rows = vocab.rows(0).size();  // the first ranks hold the odd rows, and rank 0 the owned copies
  const ProcessGroups groups = make_plan_groups(static_cast<int>(tensor), static_cast<int>(data), 0);
  const LoraOptions lora = config.lora_options();
  lora_rank = lora.rank;
  ParameterSet<float> declared, adapters;
  const DecoderModel<float> declaring(model, vocab, groups, declared, sequence_parallel,
                                      adapts() ? Lora<float>{lora, &adapters} : Lora<float>{});
  base = declared.specs();
  specs = adapts() ? adapters.specs() : base;
  base_layout = make_flat_layout(base, kBucketElements, data);
  layout = adapts() ? make_flat_layout(specs, kBucketElements, data) : base_layout;
  for (const ParameterSpec& spec : base) parameters += spec.global_size();
  for (const ParameterSpec& spec : specs) trained += spec.global_size();
}

Recompute recompute_of(const RunConfig& config) {
  const std::string& key = config.train.recompute;
  return key == "layer" ? Recompute::kLayer : key == "selective" ? Recompute::kSelective : Recompute::kNone;
}

}  // namespace reprise
