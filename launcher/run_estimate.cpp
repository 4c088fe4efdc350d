#include "launcher/run_estimate.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.hpp"
#include "core/math.hpp"
#include "launcher/model_session.hpp"
#include "launcher/plan_communicator.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kFloatBytes = 4;
/// Code, libraries, MPI's buffers and the loader's next batches; measured on small models.
constexpr std::int64_t kProgramBytes = std::int64_t{40} << 20;

double ring_all_reduce(double bytes, double ranks) {
  return 2.0 * bytes * (ranks - 1.0) / ranks;
}
/// `bytes` of the whole result (all-gather) or input (reduce-scatter).
double ring_pass(double bytes, double ranks) {
  return bytes * (ranks - 1.0) / ranks;
}

}  // namespace

RunEstimate::RunEstimate(const DecoderConfig& model, const RunConfig& config, std::int64_t world_size)
    : model_(model),
      config_(config),
      tensor_(config.parallel.tensor),
      data_(div_exact(world_size, tensor_)),
      element_bytes_(config.model.dtype == "bfloat16" ? 2 : 4),
      sequence_parallel_(config.parallel.sequence_parallel && tensor_ > 1),
      recompute_(config.train.recompute == "layer"),
      heads_(model.num_heads / tensor_),
      kv_heads_(std::max<std::int64_t>(1, model.num_kv_heads / tensor_)),
      ffn_(model.ffn_hidden_size / tensor_),
      kv_replicas_(std::max<std::int64_t>(1, tensor_ / model.num_kv_heads)) {
  const VocabPartition vocab = VocabPartition::even(model.vocab_rows(), model.vocab_size, static_cast<int>(tensor_));
  vocab_rows_ = vocab.rows(0).size();  // the first ranks hold the odd rows, and rank 0 the owned copies
  const ProcessGroups groups = make_plan_groups(static_cast<int>(tensor_), static_cast<int>(data_), 0);
  ParameterSet<float> declared;
  const DecoderModel<float> declaring(model, vocab, groups, declared, sequence_parallel_);
  largest_.specs = declared.specs();
  largest_.layout = make_flat_layout(largest_.specs, kBucketElements, data_);
  for (const ParameterSpec& spec : largest_.specs) parameters_ += spec.global_size();
}

// ---- memory --------------------------------------------------------------------------------------------------------

/// What one micro-batch leaves for backward; follows DecoderLayer::Activations.
std::int64_t RunEstimate::kept_bytes(std::int64_t tokens) const {
  const std::int64_t rows = sequence_parallel_ ? ceil_div(tokens, tensor_) : tokens, dim = model_.head_dim;
  const std::int64_t residual = rows * model_.hidden_size * element_bytes_;
  const std::int64_t gathered = sequence_parallel_ ? tokens * model_.hidden_size * element_bytes_ : 0;
  std::int64_t inner = 2 * (residual + gathered + rows * kFloatBytes);  // normed inputs of both blocks
  inner += tokens * (heads_ + 2 * kv_heads_) * dim * element_bytes_;    // q, k, v
  if (model_.qk_norm) inner += tokens * (heads_ + kv_heads_) * (dim * element_bytes_ + kFloatBytes);
  inner += tokens * heads_ * (dim * element_bytes_ + kFloatBytes);  // attention and its normalisers
  inner += tokens * 3 * ffn_ * element_bytes_;                      // gate, up and their product
  const std::int64_t per_layer = recompute_ ? residual : 2 * residual + inner;
  const std::int64_t one_layer = recompute_ ? residual + inner : 0;
  constexpr std::int64_t kOutsideLayers = 5;  // embedding's, MLP's and last output, hidden states and their gradient
  return model_.num_layers * per_layer + one_layer + kOutsideLayers * residual;
}

/// Scratch of backward: the residual's gradient and the larger of the two blocks.
std::int64_t RunEstimate::backward_bytes(std::int64_t tokens) const {
  const std::int64_t rows = sequence_parallel_ ? ceil_div(tokens, tensor_) : tokens, hidden = model_.hidden_size;
  const std::int64_t gathered = sequence_parallel_ ? hidden : 0;
  const std::int64_t mlp = 3 * ffn_ + hidden + gathered;
  const std::int64_t attention = (2 * heads_ + 2 * kv_heads_) * model_.head_dim + hidden + gathered;
  return (rows * hidden + tokens * std::max(mlp, attention)) * element_bytes_;
}

MemoryEstimate RunEstimate::memory(const StepShape& step, std::int64_t store_positions, std::int64_t store_ids) const {
  const std::int64_t elements = largest_.layout.size;
  const std::int64_t state = config_.optimizer.zero_stage == 0 ? elements : elements / data_;
  const bool own_shard = config_.optimizer.zero_stage == 2 && data_ > 1;
  MemoryEstimate memory;
  memory.weights = elements * element_bytes_;
  memory.gradients = (elements + (own_shard ? state : 0)) * kFloatBytes;
  memory.optimizer = state * kFloatBytes * (element_bytes_ == kFloatBytes ? 2 : 3);  // float32 weights are the master

  const std::int64_t targets = step.max_targets, hidden = model_.hidden_size;
  std::int64_t head_kept = targets * hidden * element_bytes_, head_scratch = targets * hidden * element_bytes_;
  if (config_.normalization() == Normalization::kFull) {
    constexpr std::int64_t kKeptLogits = std::int64_t{16} << 20, kBlockLogits = std::int64_t{1} << 20;
    const bool keeps_logits = targets * vocab_rows_ <= kKeptLogits;  // else blocks of them are made twice
    head_kept += keeps_logits ? targets * vocab_rows_ * kFloatBytes : 0;
    head_scratch += (targets * hidden + (keeps_logits ? 0 : kBlockLogits)) * kFloatBytes;
  } else {
    // Neighbours share about half of their sets.
    const std::int64_t tile = config_.normalization() == Normalization::kToken ? 1 : config_.replay.tile_tokens;
    const double shared = static_cast<double>(config_.replay.k_max) * (1.0 + 0.5 * static_cast<double>(tile - 1));
    const auto candidates =
        std::min(static_cast<std::int64_t>(shared), model_.vocab_size) / tensor_ + config_.replay.negatives / tensor_;
    head_kept += targets * (hidden + candidates) * kFloatBytes;
    head_scratch += targets * hidden * kFloatBytes + vocab_rows_ * 8 + config_.replay.negatives * hidden * kFloatBytes;
  }
  const std::int64_t scratch = backward_bytes(step.max_tokens);
  memory.activations = kept_bytes(step.max_tokens) + scratch;
  memory.head = head_kept + std::max<std::int64_t>(0, head_scratch - scratch);  // one after the other
  memory.store = store_memory_bytes(store_positions, store_ids, config_.replay.log_probs);
  memory.program = kProgramBytes;
  return memory;
}

// ---- collectives ---------------------------------------------------------------------------------------------------

std::vector<WireEstimate> RunEstimate::wire(const StepShape& step) const {
  std::vector<WireEstimate> lines;
  if (tensor_ > 1) {
    add_tensor_wire(step, lines);
    add_head_wire(step, lines);
  }
  add_data_wire(step, lines);
  return lines;
}

void RunEstimate::add_tensor_wire(const StepShape& step, std::vector<WireEstimate>& lines) const {
  const auto ranks = static_cast<double>(tensor_), layers = static_cast<double>(model_.num_layers);
  const double activations = step.tokens * static_cast<double>(model_.hidden_size * element_bytes_);
  const double recomputed = recompute_ ? layers : 0.0;
  // Per layer: two sums forward and two backward, and one more when attention is computed again.
  const double sums = step.micro_batches * (1.0 + 4.0 * layers + recomputed);
  if (!sequence_parallel_) {
    lines.push_back({"tp", Collective::kAllReduce, "activations and their gradients", sums,
                     sums * ring_all_reduce(activations, ranks)});
  } else {
    const double gathers = step.micro_batches * (1.0 + 4.0 * layers + 2.0 * recomputed);
    lines.push_back({"tp", Collective::kReduceScatter, "activations and their gradients", sums,
                     sums * ring_pass(activations, ranks)});
    lines.push_back({"tp", Collective::kAllGather, "activations and their gradients", gathers,
                     gathers * ring_pass(activations, ranks)});
  }
  if (kv_replicas_ > 1) {
    const double keys = step.tokens * static_cast<double>(2 * model_.head_dim * element_bytes_);
    const double calls = step.micro_batches * layers;
    lines.push_back({"kv", Collective::kAllReduce, "gradients of shared keys and values", calls,
                     calls * ring_all_reduce(keys, static_cast<double>(kv_replicas_))});
  }
  double copies = 0.0;
  for (const ParameterSpec& spec : largest_.specs) copies += spec.sum_over_tp ? static_cast<double>(spec.size()) : 0.0;
  if (copies > 0.0) {
    lines.push_back({"tp", Collective::kAllReduce, "gradients of replicated parameters", 1.0,
                     ring_all_reduce(copies * kFloatBytes, ranks)});
  }
}

void RunEstimate::add_head_wire(const StepShape& step, std::vector<WireEstimate>& lines) const {
  const auto ranks = static_cast<double>(tensor_);
  const double calls = step.micro_batches;
  const double statistics = 3.0 * kFloatBytes * step.targets * (ranks - 1.0);
  lines.push_back({"tp", Collective::kAllGather, "softmax statistics, 12 bytes a target", calls, calls * statistics});
  const double selected = step.targets * static_cast<double>(model_.hidden_size * element_bytes_);
  if (!sequence_parallel_) {
    lines.push_back({"tp", Collective::kAllReduce, "gradient of the selected hidden states", calls,
                     calls * ring_all_reduce(selected, ranks)});
    return;
  }
  lines.push_back({"tp", Collective::kAllGather, "selected hidden states", calls, calls * ring_pass(selected, ranks)});
  lines.push_back({"tp", Collective::kAllToAll, "gradient of the selected hidden states", calls,
                   calls * ring_pass(selected, ranks)});
}

void RunEstimate::add_data_wire(const StepShape& step, std::vector<WireEstimate>& lines) const {
  const auto ranks = static_cast<double>(data_), buckets = static_cast<double>(largest_.layout.buckets.size());
  const auto elements = static_cast<double>(largest_.layout.size);
  const std::int64_t stage = config_.optimizer.zero_stage;
  if (data_ > 1 && stage == 0) {
    lines.push_back(
        {"dp", Collective::kAllReduce, "gradients, float32", buckets, ring_all_reduce(elements * kFloatBytes, ranks)});
  } else if (data_ > 1) {
    const double times = stage == 2 ? step.micro_batches : 1.0;
    lines.push_back({"dp", Collective::kReduceScatter, "gradients, float32", times * buckets,
                     times * ring_pass(elements * kFloatBytes, ranks)});
    lines.push_back({"dp", Collective::kAllGather, "parameters", buckets,
                     ring_pass(elements * static_cast<double>(element_bytes_), ranks)});
  }
  if (tensor_ * data_ == 1) return;
  std::set<std::string> groups;
  const AngleScope scope = config_.optimizer_options().angle_scope;
  for (const ParameterSpec& spec : largest_.specs) {
    groups.insert(scope == AngleScope::kTensor ? spec.name : scope == AngleScope::kLayer ? spec.layer : "all");
  }
  const double doubles = 4.0 * static_cast<double>(groups.size()) + 8.0;
  lines.push_back({"world", Collective::kAllGather, "sums of the step, 4 float64 a group", 1.0,
                   8.0 * doubles * static_cast<double>(tensor_ * data_ - 1)});
}

// ---- store ---------------------------------------------------------------------------------------------------------

std::int64_t store_disk_bytes(std::int64_t positions, std::int64_t ids, bool log_probs) {
  constexpr double kBytesAnId = 1.6, kBytesALogProb = 2.0, kBytesAPosition = 12.0;
  const double an_id = kBytesAnId + (log_probs ? kBytesALogProb : 0.0);
  return static_cast<std::int64_t>(kBytesAPosition * static_cast<double>(positions) + an_id * static_cast<double>(ids));
}

std::int64_t store_memory_bytes(std::int64_t positions, std::int64_t ids, bool log_probs) {
  constexpr double kBytesAnId = 1.8, kBytesALogProb = 2.0, kBytesAPosition = 21.0;
  const double an_id = kBytesAnId + (log_probs ? kBytesALogProb : 0.0);
  return static_cast<std::int64_t>(kBytesAPosition * static_cast<double>(positions) + an_id * static_cast<double>(ids));
}

}  // namespace reprise
