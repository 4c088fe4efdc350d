#include "launcher/plan_step.hpp"

#include <algorithm>

namespace reprise {

namespace {

/// FLOP a second of our attention kernels, of the limits that docs/kernels.md works out (a share of mma.sync's rate),
/// of which two blocks of four warps should reach 0.65. Not measured on a GPU.
void set_attention(const Hardware& hardware, TimedStep& step) {
  step.attention_backward_products = 7.0;  // scores and their gradient are made twice
  if (!hardware.gpu) {
    constexpr double kCpuShare = 0.5;
    step.attention_forward = step.attention_backward = kCpuShare * hardware.matrix_rate;
  } else if (step.element_bytes == 4) {
    step.attention_forward = step.attention_backward = 0.5 * hardware.vector_rate;
  } else {
    constexpr double kReached = 0.65, kForward = 0.886, kQuery = 0.845, kKey = 0.563;
    step.attention_forward = kReached * kForward * hardware.mma_rate;
    step.attention_backward = kReached * 7.0 / (3.0 / kQuery + 4.0 / kKey) * hardware.mma_rate;
  }
}

Exchange& operator+=(Exchange& sum, const Exchange& more) {
  if (more.ranks > 1) sum = {sum.calls + more.calls, sum.bytes + more.bytes, more.ranks, more.stride};
  return sum;
}

void set_exchanges(const RunShape& run, const StepShape& shape, TimedStep& step) {
  for (const WireEstimate& line : estimate_wire(run, shape)) {
    if (line.group == "dp") {
      Exchange& exchange = line.verb == Collective::kAllGather ? step.parameters : step.gradients;
      exchange += Exchange{line.calls, line.bytes, run.data, run.tensor};
    } else if (line.group == "world") {
      step.other += Exchange{line.calls, line.bytes, run.tensor * run.data, 1};
    } else {
      step.tensor_exchanges.push_back({line.calls, line.bytes, line.group == "kv" ? run.kv_replicas : run.tensor, 1});
    }
  }
}

}  // namespace

PlannedHead planned_head(const RunConfig& config, double set_size) {
  PlannedHead head{.tile_tokens = config.replay.tile_tokens, .set_size = set_size};
  switch (config.normalization()) {
    case Normalization::kFull: head.kind = TimedHead::Kind::kFull; break;
    case Normalization::kToken: head.kind = TimedHead::Kind::kToken; break;
    case Normalization::kTile: head.kind = TimedHead::Kind::kTile; break;
  }
  return head;
}

TimedStep make_timed_step(const RunShape& run, const StepShape& shape, double pairs, const Hardware& hardware,
                          const PlannedHead& head) {
  const DecoderConfig& model = run.model;
  const RunConfig& config = run.config;
  TimedStep step;
  step.model = {.layers = model.num_layers,
                .hidden = model.hidden_size,
                .ffn = model.ffn_hidden_size,
                .mlp_inputs = 2,
                .heads = model.num_heads,
                .kv_heads = model.num_kv_heads,
                .head_dim = model.head_dim,
                .vocab = model.vocab_size};
  step.tensor = run.tensor;
  step.sequence_parallel = run.sequence_parallel;
  step.frozen = run.adapts();
  step.micro_batches = shape.micro_batches;
  step.tokens = shape.tokens;
  step.pairs = pairs;
  step.element_bytes = run.element_bytes;
  if (config.train.recompute == "layer") step.recompute = TimedRecompute::kLayer;
  if (config.train.recompute == "selective") step.recompute = TimedRecompute::kSelective;
  set_attention(hardware, step);

  constexpr double kKeptLogits = 16.0 * 1024.0 * 1024.0;  // more are made twice, in blocks
  const auto rows = static_cast<double>(run.vocab_rows);
  step.head = {.kind = head.kind,
               .targets = shape.targets,
               .vocab_rows = rows,
               .vocab = static_cast<double>(model.vocab_size),
               .hidden = model.hidden_size,
               .element_bytes = run.element_bytes,
               .products = shape.targets * rows > kKeptLogits ? 4.0 : 3.0,
               .tile_tokens = head.tile_tokens,
               .set_size = head.set_size,
               .negatives = static_cast<double>(config.replay.negatives),
               .uniform_sets = head.uniform_sets,
               .passes = 1.0};

  step.head.frozen = step.frozen;
  const auto elements = static_cast<double>(run.layout.size);
  step.local_parameters = elements;
  step.optimizer_parameters = config.optimizer.zero_stage == 0 ? elements : elements / static_cast<double>(run.data);
  const double copy = run.element_bytes == 2 ? 2.0 : 0.0;  // of bfloat16 beside the master
  step.optimizer_bytes = (config.optimizer.name == "moclip" ? 40.0 : 36.0) + copy;
  step.data_overlapped = hardware.gpu && config.parallel.overlap;
  step.gradient_passes = config.optimizer.zero_stage == 2 ? shape.micro_batches : 1.0;
  set_exchanges(run, shape, step);
  return step;
}

double collect_seconds(const Hardware& hardware, const TimedStep& step, double tokens, double targets) {
  if (step.tokens <= 0.0) return 0.0;
  const double per_step = step.micro_batches * step.tokens;
  double layers = forward_seconds(hardware, step);
  // Two of the four sums of a layer.
  for (const Exchange& exchange : step.tensor_exchanges) {
    layers += 0.5 * exchange_seconds(hardware, exchange.calls, exchange.bytes, exchange.ranks, exchange.stride);
  }
  const double rows = step.head.vocab_rows, hidden = static_cast<double>(step.head.hidden);
  const double chunk = std::max(1.0, std::min(step.head.targets, 8192.0));
  constexpr double kLogitReads = 2.15;  // written once, scanned once, a few blocks again
  const double a_chunk = product_seconds(hardware, chunk, rows, hidden, step.element_bytes) +
                         kLogitReads * 4.0 * chunk * rows / (hardware.memory_share * hardware.memory_rate);
  return layers * tokens / per_step + a_chunk * targets / chunk;
}

}  // namespace reprise
