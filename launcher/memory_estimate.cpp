#include "launcher/memory_estimate.hpp"

#include <algorithm>

#include "core/math.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kFloatBytes = 4, kMiB = std::int64_t{1} << 20;

/// Without a store a set is taken to hold k_max ids, without samples of it to share half with its neighbours.
StoreShape foreseen_sets(const RunShape& run, const StoreShape& store) {
  if (store.candidates_a_target > 0.0) return store;
  const bool by_token = run.config.normalization() == Normalization::kToken;
  const auto tile = static_cast<double>(by_token ? 1 : run.config.replay.tile_tokens);
  StoreShape shape = store;
  const double set = store.positions > 0 ? static_cast<double>(store.ids) / static_cast<double>(store.positions)
                                         : static_cast<double>(run.config.replay.k_max);
  shape.logits_a_target = std::min(set * (0.5 + 0.5 * tile), static_cast<double>(run.model.vocab_size));
  shape.candidates_a_target = shape.logits_a_target / tile;
  return shape;
}

/// On the rank with an even share of the vocabulary.
MicroBatchShape micro_batch(const RunShape& run, const StepShape& step, const StoreShape& store, std::int64_t tokens,
                            std::int64_t targets) {
  MicroBatchShape batch{.tokens = tokens, .targets = targets};
  batch.longest = std::min(tokens, step.longest > 0 ? step.longest : run.config.data.sequence_length);
  if (run.config.normalization() == Normalization::kFull) return batch;
  const StoreShape sets = foreseen_sets(run, store);
  const double share = static_cast<double>(targets) / static_cast<double>(run.tensor);
  batch.candidates = static_cast<std::int64_t>(share * sets.candidates_a_target);
  batch.logits = static_cast<std::int64_t>(share * sets.logits_a_target);
  batch.segment_rows = static_cast<std::int64_t>(sets.segment_rows / static_cast<double>(run.tensor));
  return batch;
}

MicroBatchShape largest_micro_batch(const RunShape& run, const StepShape& step, const StoreShape& store) {
  return micro_batch(run, step, store, step.max_tokens, step.max_targets);
}

std::int64_t largest_bucket(const RunShape& run) {
  std::int64_t largest = 0;
  for (const Bucket& bucket : run.layout.buckets) largest = std::max(largest, bucket.end - bucket.begin);
  return largest;
}

/// ZeRO 2 with several micro-batches: the shard of one of them, before it is added to the sum.
std::int64_t shard_part_bytes(const RunShape& run, const StepShape& step) {
  const bool has_parts = run.config.optimizer.zero_stage == 2 && run.data > 1 && step.micro_batches > 1.0;
  return has_parts ? largest_bucket(run) / run.data * kFloatBytes : 0;
}

/// The largest arena of a step or an evaluation, and what of it the model alone would want.
void add_arena(const RunShape& run, const StepShape& step, const StoreShape& store, const RankDevice& device,
               MemoryEstimate& memory) {
  const MicroBatchShape batch = largest_micro_batch(run, step, store);
  const bool full = run.config.normalization() == Normalization::kFull;
  // A CPU's reductions take their scratch of the same arena.
  const std::int64_t reduction = device.gpu ? 0 : shard_part_bytes(run, step);
  const auto plan = [&](PlannedLoss loss) { return plan_training(run, device, batch, loss, reduction); };
  std::int64_t peak = plan(full ? PlannedLoss::kFull : PlannedLoss::kRestricted);
  if (!full && !run.config.data.general.empty()) peak = std::max(peak, plan(PlannedLoss::kFull));
  if (step.eval_tokens > 0) {
    const MicroBatchShape evaluated{.tokens = step.eval_tokens, .targets = step.eval_tokens, .longest = batch.longest};
    peak = std::max(peak, plan_evaluation(run, device, evaluated));
  }
  memory.activations = plan(PlannedLoss::kNone);
  memory.head = peak - memory.activations;
}

/// Host memory of the prepared micro-batches: the step that runs, two that wait and one that is being made.
std::int64_t batch_bytes(const RunShape& run, const StepShape& step, const StoreShape& store) {
  constexpr double kSteps = 4.0, kBytesAToken = 4.0, kBytesATarget = 32.0, kBytesAnId = 4.0;
  const bool full = run.config.normalization() == Normalization::kFull;
  const double ids = full ? 0.0 : foreseen_sets(run, store).candidates_a_target;
  const double one = kBytesAToken * step.tokens + (kBytesATarget + kBytesAnId * ids) * step.targets;
  return static_cast<std::int64_t>(kSteps * step.micro_batches * one);
}

/// On a CPU the incoming addends of sums over ranks (parallel/mpi_communicator.cpp), one buffer a group; on a GPU what
/// its libraries ask for, the second queue's own arena, and lists of the micro-batches that are on their way.
std::int64_t workspace_bytes(const RunShape& run, const StepShape& step, const StoreShape& store,
                             const RankDevice& device) {
  if (!device.gpu) {
    constexpr std::int64_t kMostAddends = 4 * kMiB;
    const std::int64_t activations = step.max_tokens * run.model.hidden_size * run.element_bytes / run.tensor;
    return (run.tensor > 1 ? std::min(kMostAddends, activations) : 0) +
           (run.data > 1 ? std::min(kMostAddends, largest_bucket(run) * kFloatBytes / run.data) : 0);
  }
  constexpr std::int64_t kQueues = 2, kProductWorkspace = 32 * kMiB, kBytesAnId = 12, kBytesATarget = 24;
  std::int64_t bytes = kQueues * kProductWorkspace;
  for (const ParameterSpec& spec : run.specs) bytes += spec.sum_over_tp ? spec.size() * kFloatBytes : 0;
  bytes += shard_part_bytes(run, step);
  const MicroBatchShape batch = largest_micro_batch(run, step, store);  // its lists: candidates, tiles, units of rows
  const std::int64_t lists = kBytesAnId * batch.candidates + kBytesATarget * batch.targets;
  return bytes + static_cast<std::int64_t>(step.micro_batches * static_cast<double>(lists));
}

/// Code, libraries and their buffers, as measured (docs/scaling.md): MPI's come with other ranks, HDF5's with a store,
/// and every thread has OpenBLAS's panels and in bfloat16 its own widened blocks.
std::int64_t program_bytes(const RunShape& run, const StoreShape& store, const RankDevice& device) {
  constexpr std::int64_t kAlone = 24 * kMiB, kMpi = 9 * kMiB, kStore = 3 * kMiB;
  constexpr std::int64_t kPanels = kMiB / 4, kWidened = 7 * kMiB / 4;
  const std::int64_t thread = kPanels + (run.element_bytes == kFloatBytes || device.gpu ? 0 : kWidened);
  return kAlone + (run.tensor * run.data > 1 ? kMpi : 0) + (store.positions > 0 ? kStore : 0) + device.threads * thread;
}

/// Gradients that are never in memory together: on a CPU ZeRO 2 gives a bucket's pages back as soon as it is reduced,
/// behind every micro-batch, and with a single micro-batch already while backward fills the others.
std::int64_t released_bytes(const RunShape& run, const StepShape& step, const RankDevice& device) {
  const bool releases = run.config.optimizer.zero_stage == 2 && run.data > 1 && !device.gpu;
  if (!releases || step.micro_batches > 1.0) return 0;
  return (run.layout.size - largest_bucket(run)) * kFloatBytes;
}

}  // namespace

MemoryEstimate estimate_memory(const RunShape& run, const StepShape& step, const StoreShape& store,
                               const RankDevice& device) {
  const RunConfig& config = run.config;
  const std::int64_t elements = run.layout.size;
  const std::int64_t state = config.optimizer.zero_stage == 0 ? elements : elements / run.data;
  const std::int64_t moments = run.element_bytes == kFloatBytes ? 2 : 3;  // float32 weights are their own master
  const std::int64_t shards = config.optimizer.zero_stage == 2 && run.data > 1 ? 1 : 0;
  MemoryEstimate memory;
  memory.weights = (run.base_layout.size + (run.adapts() ? elements : 0)) * run.element_bytes;
  memory.gradients = elements * kFloatBytes;
  memory.optimizer = state * kFloatBytes * (moments + shards);
  add_arena(run, step, store, device, memory);
  memory.workspace = workspace_bytes(run, step, store, device);
  memory.store = store_memory_bytes(store, config.replay.log_probs);
  memory.batches = batch_bytes(run, step, store);
  memory.program = program_bytes(run, store, device);
  memory.released = released_bytes(run, step, device);
  return memory;
}

std::int64_t store_disk_bytes(const StoreShape& store, bool log_probs) {
  constexpr double kBytesAnId = 1.6, kBytesALogProb = 2.0, kBytesAPosition = 12.0;
  const double an_id = kBytesAnId + (log_probs ? kBytesALogProb : 0.0);
  return static_cast<std::int64_t>(kBytesAPosition * static_cast<double>(store.positions) +
                                   an_id * static_cast<double>(store.ids));
}

std::int64_t store_memory_bytes(const StoreShape& store, bool log_probs) {
  constexpr double kBytesAnId = 1.8, kBytesALogProb = 2.0, kBytesAPosition = 21.0;
  const double an_id = kBytesAnId + (log_probs ? kBytesALogProb : 0.0);
  return static_cast<std::int64_t>(kBytesAPosition * static_cast<double>(store.positions) +
                                   an_id * static_cast<double>(store.ids));
}

}  // namespace reprise
