#include "launcher/wire_estimate.hpp"

#include <set>

namespace reprise {

namespace {

constexpr std::int64_t kFloatBytes = 4;

double ring_all_reduce(double bytes, double ranks) {
  return 2.0 * bytes * (ranks - 1.0) / ranks;
}
/// `bytes` of the whole result (all-gather) or input (reduce-scatter).
double ring_pass(double bytes, double ranks) {
  return bytes * (ranks - 1.0) / ranks;
}

void add_tensor_wire(const RunShape& run, const StepShape& step, std::vector<WireEstimate>& lines) {
  const auto ranks = static_cast<double>(run.tensor), layers = static_cast<double>(run.model.num_layers);
  const double activations = step.tokens * static_cast<double>(run.model.hidden_size * run.element_bytes);
  const std::string& recompute = run.config.train.recompute;
  const double recomputed = recompute == "layer" ? layers : 0.0;
  const double normed_again = recompute == "selective" ? layers : recomputed;  // both norms' outputs, gathered
  // Per layer: two sums forward and two backward, and one more when attention is computed again.
  const double sums = step.micro_batches * (1.0 + 4.0 * layers + recomputed);
  if (!run.sequence_parallel) {
    lines.push_back({"tp", Collective::kAllReduce, "activations and their gradients", sums,
                     sums * ring_all_reduce(activations, ranks)});
  } else {
    const double gathers = step.micro_batches * (1.0 + 4.0 * layers + 2.0 * normed_again);
    lines.push_back({"tp", Collective::kReduceScatter, "activations and their gradients", sums,
                     sums * ring_pass(activations, ranks)});
    lines.push_back({"tp", Collective::kAllGather, "activations and their gradients", gathers,
                     gathers * ring_pass(activations, ranks)});
  }
  if (run.kv_replicas > 1) {
    const double keys = step.tokens * static_cast<double>(2 * run.model.head_dim * run.element_bytes);
    const double calls = step.micro_batches * layers;
    lines.push_back({"kv", Collective::kAllReduce, "gradients of shared keys and values", calls,
                     calls * ring_all_reduce(keys, static_cast<double>(run.kv_replicas))});
  }
  double copies = 0.0;
  for (const ParameterSpec& spec : run.specs) copies += spec.sum_over_tp ? static_cast<double>(spec.size()) : 0.0;
  if (copies > 0.0) {
    lines.push_back({"tp", Collective::kAllReduce, "gradients of replicated parameters", 1.0,
                     ring_all_reduce(copies * kFloatBytes, ranks)});
  }
}

void add_head_wire(const RunShape& run, const StepShape& step, std::vector<WireEstimate>& lines) {
  const auto ranks = static_cast<double>(run.tensor);
  const double calls = step.micro_batches;
  const double statistics = 3.0 * kFloatBytes * step.targets * (ranks - 1.0);
  lines.push_back({"tp", Collective::kAllGather, "softmax statistics, 12 bytes a target", calls, calls * statistics});
  const double selected = step.targets * static_cast<double>(run.model.hidden_size * run.element_bytes);
  if (!run.sequence_parallel) {
    lines.push_back({"tp", Collective::kAllReduce, "gradient of the selected hidden states", calls,
                     calls * ring_all_reduce(selected, ranks)});
    return;
  }
  lines.push_back({"tp", Collective::kAllGather, "selected hidden states", calls, calls * ring_pass(selected, ranks)});
  lines.push_back({"tp", Collective::kAllToAll, "gradient of the selected hidden states", calls,
                   calls * ring_pass(selected, ranks)});
}

void add_data_wire(const RunShape& run, const StepShape& step, std::vector<WireEstimate>& lines) {
  const auto ranks = static_cast<double>(run.data), buckets = static_cast<double>(run.layout.buckets.size());
  const auto elements = static_cast<double>(run.layout.size);
  const std::int64_t stage = run.config.optimizer.zero_stage;
  if (run.data > 1 && stage == 0) {
    lines.push_back(
        {"dp", Collective::kAllReduce, "gradients, float32", buckets, ring_all_reduce(elements * kFloatBytes, ranks)});
  } else if (run.data > 1) {
    const double times = stage == 2 ? step.micro_batches : 1.0;
    lines.push_back({"dp", Collective::kReduceScatter, "gradients, float32", times * buckets,
                     times * ring_pass(elements * kFloatBytes, ranks)});
    lines.push_back({"dp", Collective::kAllGather, "parameters", buckets,
                     ring_pass(elements * static_cast<double>(run.element_bytes), ranks)});
  }
  if (run.tensor * run.data == 1) return;
  std::set<std::string> groups;
  const AngleScope scope = run.config.optimizer_options().angle_scope;
  for (const ParameterSpec& spec : run.specs) {
    groups.insert(scope == AngleScope::kTensor ? spec.name : scope == AngleScope::kLayer ? spec.layer : "all");
  }
  const double doubles = 4.0 * static_cast<double>(groups.size()) + 8.0;
  lines.push_back({"world", Collective::kAllGather, "sums of the step, 4 float64 a group", 1.0,
                   8.0 * doubles * static_cast<double>(run.tensor * run.data - 1)});
}

}  // namespace

std::vector<WireEstimate> estimate_wire(const RunShape& run, const StepShape& step) {
  std::vector<WireEstimate> lines;
  if (run.tensor > 1) {
    add_tensor_wire(run, step, lines);
    add_head_wire(run, step, lines);
  }
  add_data_wire(run, step, lines);
  return lines;
}

}  // namespace reprise
