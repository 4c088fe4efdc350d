#include "launcher/measured_steps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/math.hpp"
#include "core/strict_json.hpp"
#include "launcher/plan_step.hpp"

namespace reprise {

namespace {

using nlohmann::json;

/// A row, or the model or software that it names, read with messages that name the row.
class Row {
 public:
  Row(const json& object, std::string what) : object_(object), what_(std::move(what)) {}

  [[nodiscard]] const json& value(const std::string& key) const {
    const auto found = object_.find(key);
    require(found != object_.end(), ErrorKind::kUsage, "{}: {} is needed", what_, key);
    return *found;
  }
  [[nodiscard]] double number(const std::string& key) const {
    require(value(key).is_number(), ErrorKind::kUsage, "{}: {} must be a number", what_, key);
    return value(key).get<double>();
  }
  [[nodiscard]] double number(const std::string& key, double fallback) const {
    return object_.contains(key) ? number(key) : fallback;
  }
  [[nodiscard]] std::int64_t count(const std::string& key) const {
    const double read = number(key);
    require(read >= 1.0 && read == std::floor(read), ErrorKind::kUsage, "{}: {} must be an integer of at least 1",
            what_, key);
    return static_cast<std::int64_t>(read);
  }
  [[nodiscard]] std::int64_t count(const std::string& key, std::int64_t fallback) const {
    return object_.contains(key) ? count(key) : fallback;
  }
  [[nodiscard]] std::string text(const std::string& key, const std::string& fallback = "") const {
    if (!object_.contains(key)) return fallback;
    require(value(key).is_string(), ErrorKind::kUsage, "{}: {} must be a string", what_, key);
    return value(key).get<std::string>();
  }
  /// The object of that name under `section` of the file.
  [[nodiscard]] Row named(const json& file, const std::string& section, const std::string& key) const {
    const std::string name = text(key);
    require(file.contains(section) && file[section].contains(name), ErrorKind::kUsage, "{}: {} = \"{}\" is not in {}",
            what_, key, name, section);
    return Row(file[section][name], what_ + ", " + section + "." + name);
  }

 private:
  const json& object_;
  std::string what_;
};

TimedRecompute recompute_of(const std::string& name) {
  if (name == "selective") return TimedRecompute::kSelective;
  if (name == "half") return TimedRecompute::kHalf;
  return name == "layer" ? TimedRecompute::kLayer : TimedRecompute::kNone;
}

TimedModel model_of(const Row& row) {
  return {.layers = row.count("layers"),
          .hidden = row.count("hidden"),
          .ffn = row.count("ffn"),
          .mlp_inputs = row.count("mlp_inputs", 2),
          .heads = row.count("heads"),
          .kv_heads = row.count("kv_heads"),
          .head_dim = row.count("head_dim"),
          .vocab = row.count("vocab")};
}

/// What a ring sends of a whole of `bytes`.
double ring(double bytes, std::int64_t ranks) {
  return bytes * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
}

/// Megatron's collectives with sequence parallelism: a gather and a scatter for each of a layer's two blocks, forward
/// and backward, and two gathers again for weight gradients; all of forward's once more where it is computed again.
Exchange megatron_exchange(const TimedStep& step) {
  const double recomputed = step.recompute == TimedRecompute::kLayer ? 4.0 : 0.0;
  const double calls =
      step.micro_batches * static_cast<double>(step.model.layers / step.pipeline) * (10.0 + recomputed);
  const double whole = step.tokens * static_cast<double>(step.model.hidden) * 2.0;
  return {calls, calls * ring(whole, step.tensor), step.tensor, 1};
}

void set_data_exchange(const Row& row, std::int64_t ranks, std::int64_t stride, TimedStep& step) {
  const double elements = step.local_parameters, gradient_bytes = row.number("gradient_bytes", 4.0);
  step.parameters_sharded = row.count("zero", 1) == 3;
  const double gathers = step.parameters_sharded ? 2.0 : 1.0;  // again for backward
  step.gradients = {1.0, ring(gradient_bytes * elements, ranks), ranks, stride};
  step.parameters = {gathers, gathers * ring(2.0 * elements, ranks), ranks, stride};
}

MeasuredStep published(const json& file, const Row& row) {
  const Hardware& hardware = find_hardware(row.text("hardware"));
  const Row software = row.named(file, "software", "software");
  const std::int64_t ranks = row.count("gpus"), context = row.count("context", 1), sequence = row.count("sequence");
  const std::int64_t micro_batch = row.count("micro_batch");
  TimedStep step;
  step.model = model_of(row.named(file, "models", "model"));
  step.tensor = row.count("tensor", 1);
  step.pipeline = row.count("pipeline", 1);
  step.virtual_stages = row.count("virtual_stages", 1);
  step.sequence_parallel = step.tensor > 1;
  step.micro_batches = row.number("accumulation");
  step.tokens = static_cast<double>(micro_batch * sequence / context);
  step.pairs = 0.5 * static_cast<double>(micro_batch) * static_cast<double>(sequence) * static_cast<double>(sequence) /
               static_cast<double>(context);
  step.recompute = recompute_of(row.text("recompute", "none"));
  step.attention_forward = software.number("attention_forward") * hardware.matrix_rate;
  step.attention_backward = software.number("attention_backward") * hardware.matrix_rate;
  step.passes = software.number("passes");
  step.tensor_hidden = software.number("tensor_hidden", 0.0);

  const auto tensor = static_cast<double>(step.tensor), stages = static_cast<double>(step.pipeline);
  const double vocab = step.model.vocab_parameters();
  // Embedding and head; of a pipeline the first and last stage hold one each.
  const double ends = step.pipeline > 1                                              ? 2.0 / stages
                      : row.named(file, "models", "model").number("tied", 0.0) > 0.0 ? 1.0
                                                                                     : 2.0;
  step.local_parameters = step.model.layer_parameters() / tensor / stages + ends * vocab / tensor;
  const std::int64_t replicas = div_exact(ranks, step.tensor * step.pipeline * context);
  step.optimizer_parameters = step.local_parameters / static_cast<double>(replicas * context);
  step.head = {.kind = TimedHead::Kind::kFull,
               .targets = step.tokens,
               .vocab_rows = static_cast<double>(step.model.vocab) / tensor,
               .vocab = static_cast<double>(step.model.vocab),
               .hidden = step.model.hidden,
               .passes = step.passes};
  if (step.tensor > 1) step.tensor_exchanges = {megatron_exchange(step)};
  set_data_exchange(row, replicas * context, step.tensor, step);

  MeasuredStep result;
  result.time = estimate_step_time(hardware, step);
  result.predicted = result.time.total();
  const double tokens = step.micro_batches * static_cast<double>(micro_batch * sequence * replicas);
  const double rate = row.number("tokens_per_second_per_gpu", 0.0);
  result.measured = rate > 0.0 ? tokens / rate / static_cast<double>(ranks) : row.number("seconds");
  return result;
}

/// A step of this program on CPUs.
MeasuredStep own(const json& file, const Row& row) {
  const TimedModel shape = model_of(row.named(file, "models", "model"));
  DecoderConfig model;
  model.vocab_size = shape.vocab;
  model.hidden_size = shape.hidden;
  model.ffn_hidden_size = shape.ffn;
  model.num_layers = shape.layers;
  model.num_heads = shape.heads;
  model.num_kv_heads = shape.kv_heads;
  model.head_dim = shape.head_dim;
  model.tie_word_embeddings = row.named(file, "models", "model").number("tied", 0.0) > 0.0;
  const std::int64_t ranks = row.count("ranks"), batch = row.count("batch"), sequence = row.count("sequence");
  RunConfig config;
  config.model.dtype = row.text("dtype", "float32");
  config.parallel.tensor = row.count("tensor", 1);
  config.train.recompute = row.text("recompute", "none");
  config.train.global_batch = batch;
  config.train.micro_batch = row.count("micro_batch");
  config.optimizer.zero_stage = row.count("zero", 1);
  config.replay.normalization = row.text("head");
  config.replay.tile_tokens = 8;
  const RunShape run(model, config, ranks);
  StepShape step;
  const std::int64_t rows = batch / run.data;
  step.micro_batches = static_cast<double>(ceil_div(rows, config.train.micro_batch));
  step.tokens = step.targets = static_cast<double>(rows * sequence) / step.micro_batches;
  const Hardware machine = rank_share(find_hardware(row.text("hardware")), ranks, row.count("threads"));
  PlannedHead head = planned_head(config, row.number("set_size"));
  head.uniform_sets = true;  // random weights: sets drawn nearly evenly
  const double pairs = 0.5 * step.tokens * static_cast<double>(sequence);

  MeasuredStep result;
  result.time = estimate_step_time(machine, make_timed_step(run, step, pairs, machine, head));
  result.predicted = result.time.total();
  result.measured = row.number("seconds");
  result.head_measured = row.number("head_seconds");
  result.head_predicted = result.time.head;
  return result;
}

}  // namespace

MeasuredSteps read_measured_steps(const std::filesystem::path& file) {
  const json object = read_json_object(file, ErrorKind::kUsage);
  const std::string name = file.string();
  require(object.contains("sources") && object.contains("rows") && object["rows"].is_array(), ErrorKind::kUsage,
          "{}: sources and a list of rows are needed", name);
  MeasuredSteps steps;
  for (const auto& [id, source] : object["sources"].items()) {
    const Row row(source, name + ": source " + id);
    steps.sources.push_back({id, row.text("title"), row.text("place"), row.text("date")});
  }
  std::size_t number = 0;
  for (const json& entry : object["rows"]) {
    const Row row(entry, fmt::format("{}: row {}", name, ++number));
    MeasuredStep step = entry.contains("ranks") ? own(object, row) : published(object, row);
    step.source = row.text("source");
    step.name = row.text("name");
    step.hardware = row.text("hardware");
    step.fitted = row.text("fitted");
    require(step.measured > 0.0, ErrorKind::kUsage, "{}: row {}: the measured time must be positive", name, number);
    steps.rows.push_back(std::move(step));
  }
  return steps;
}

std::string measured_steps_table(const MeasuredSteps& steps) {
  const bool heads = std::any_of(steps.rows.begin(), steps.rows.end(),
                                 [](const MeasuredStep& row) { return row.head_measured > 0.0; });
  std::string text = "| source | run | hardware | measured, s | predicted, s | error | |";
  text += heads ? " head measured, s | predicted, s |\n" : "\n";
  text += heads ? "|---|---|---|---|---|---|---|---|---|\n" : "|---|---|---|---|---|---|---|\n";
  int near = 0, nearer = 0, blind = 0, blind_near = 0;
  for (const MeasuredStep& row : steps.rows) {
    text += fmt::format("| {} | {} | {} | {:.3f} | {:.3f} | {:+.1f} % | {} |", row.source, row.name, row.hardware,
                        row.measured, row.predicted, 100.0 * row.error(),
                        row.fitted.empty() ? "" : "fitted: " + row.fitted);
    text += heads ? fmt::format(" {:.3f} | {:.3f} |\n", row.head_measured, row.head_predicted) : "\n";
    const bool within = std::abs(row.error()) <= 0.2;
    near += within ? 1 : 0;
    nearer += std::abs(row.error()) <= 0.1 ? 1 : 0;
    blind += row.fitted.empty() ? 1 : 0;
    blind_near += row.fitted.empty() && within ? 1 : 0;
  }
  return text + fmt::format(
                    "\n{} of {} rows are within 20 %, {} within 10 %; of the {} that nothing was fitted on, {} "
                    "are within 20 %.\n",
                    near, steps.rows.size(), nearer, blind, blind_near);
}

}  // namespace reprise
