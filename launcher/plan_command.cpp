#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "launcher/commands.hpp"
#include "launcher/measured_steps.hpp"
#include "launcher/plan.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"

namespace reprise {

namespace {

constexpr std::size_t kWidth = 100;
constexpr double kHour = 3600.0;

std::string milliseconds(double seconds) {
  return seconds < 0.01 ? fmt::format("{:.2f}", 1e3 * seconds) : fmt::format("{:.1f}", 1e3 * seconds);
}

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100.0 * share);
}

/// "3.2 days", or as format_seconds.
std::string long_time(double seconds) {
  return seconds < 48.0 * kHour ? format_seconds(seconds) : fmt::format("{:.1f} days", seconds / (24.0 * kHour));
}

std::string bytes_text(double bytes) {
  return format_bytes(static_cast<std::int64_t>(bytes));
}

std::string parameter_text(std::int64_t parameters) {
  const auto count = static_cast<double>(parameters);
  return count >= 1e9 ? fmt::format("{:.2f} B", count / 1e9) : fmt::format("{:.1f} M", count / 1e6);
}

void print_run(const Plan& plan, const RunConfig& config) {
  const Hardware& hardware = plan.hardware;
  fmt::print("model  {}\n  {}, {} parameters, {} layers of {}, vocabulary of {}, stored as {}\n\n", config.model.path,
             plan.model.model_type, parameter_text(plan.parameters), plan.model.num_layers, plan.model.hidden_size,
             format_count(plan.model.vocab_size), config.model.dtype);
  const std::string reached = fmt::format(
      "large products reach {:.3g} TFLOP/s, {} of {:.4g}: {}", hardware.matrix_share * hardware.matrix_rate / 1e12,
      percent(hardware.matrix_share), hardware.matrix_rate / 1e12, hardware.evidence);
  fmt::print("hardware  {}\n  {}\n  {}\n\n", hardware.name, hardware.title, wrapped(reached, kWidth, 2));
  fmt::print("run  {} rank{} = tensor {} x data {}{}\n", format_count(plan.world_size), plan.world_size == 1 ? "" : "s",
             plan.tensor, plan.data, config.parallel.sequence_parallel ? ", sequence parallel" : "");
  fmt::print("  a step: {} tokens in {} samples, {} micro-batches of {} tokens and {} targets a rank\n",
             format_count(static_cast<std::int64_t>(plan.tokens_per_step())), config.train.global_batch,
             format_count(static_cast<std::int64_t>(plan.step.micro_batches)),
             format_count(static_cast<std::int64_t>(plan.step.tokens)),
             format_count(static_cast<std::int64_t>(plan.step.targets)));
  fmt::print("  {}\n\n", plan.dataset.read
                             ? "sample lengths and targets from the training data"
                             : wrapped(fmt::format("no data was read: {:.0f} tokens a sample, {} of them targets",
                                                   plan.dataset.sample_tokens, percent(plan.dataset.targets_share)),
                                       kWidth, 2));
}

void print_memory(const Plan& plan) {
  const MemoryEstimate& memory = plan.memory();
  TextTable table("rl");
  const auto add = [&](std::int64_t bytes, const char* what) {
    if (bytes > 0) table.add({format_bytes(bytes), what});
  };
  add(memory.weights, "weights");
  add(memory.gradients, "gradients (float32)");
  add(memory.optimizer, "optimizer");
  add(memory.activations, "activations of the largest micro-batch");
  add(memory.head, "loss head");
  add(memory.workspace, "workspace");
  table.add_rule();
  table.add({format_bytes(memory.device()), plan.hardware.gpu ? "on the GPU" : "where it computes"});
  add(memory.store, "replay store, in host memory");
  add(memory.batches, "batches, in host memory");
  add(memory.program, "program, in host memory");
  fmt::print("memory  of the rank that needs most; {} of a rank's {} are usable\n{}  {}\n\n",
             bytes_text(usable_bytes(plan.hardware)), bytes_text(plan.hardware.memory_bytes), table.text(),
             wrapped(plan.fit, kWidth, 2));
}

void print_wire(const Plan& plan) {
  if (plan.wire.empty()) return;
  TextTable table("llrrl");
  table.add({"group", "collective", "calls", "sent", ""});
  for (const WireEstimate& line : plan.wire) {
    table.add({line.group, std::string(name_of(line.verb)), fmt::format("{:.0f}", line.calls), bytes_text(line.bytes),
               line.what});
  }
  fmt::print("collectives  of a step, by one rank\n{}\n", table.text());
}

void print_time(const Plan& plan) {
  const StepTime& time = plan.time();
  TextTable table("rrl");
  const auto add = [&](double seconds, const std::string& what) {
    if (seconds > 0.0) table.add({milliseconds(seconds), percent(seconds / time.total()), what});
  };
  table.add({"ms", "", ""});
  add(time.products, "products of the layers");
  add(time.attention, "attention");
  add(time.passes, "norms, rotation, activation, residual, embedding");
  add(time.recompute, "computed again in backward");
  add(time.head, "loss head (" + plan.heads.front().name + ")");
  add(time.optimizer, "optimizer");
  add(time.tensor_exposed, "tensor-parallel collectives, none hidden");
  add(time.data_exposed,
      fmt::format("data-parallel collectives that nothing hides, of {} ms", milliseconds(time.data_all)));
  table.add_rule();
  table.add({milliseconds(time.total()), "", "a step"});
  fmt::print("time  of a step\n{}", table.text());
  fmt::print("  {} tokens a second and rank, {} over all; {} of the dense rate is work that the model needs\n\n",
             format_count(static_cast<std::int64_t>(plan.tokens_per_step() / time.total() /
                                                    static_cast<double>(plan.world_size))),
             format_count(static_cast<std::int64_t>(plan.tokens_per_step() / time.total())),
             percent(plan.utilisation()));
}

void print_heads(const Plan& plan, const RunConfig& config) {
  double full = 0.0;
  for (const HeadPlan& head : plan.heads) full = head.name == "full" ? head.time.total() : full;
  TextTable table("lrrrrr");
  table.add({"head", "head ms", "share of step", "step ms", "step saved", "head memory"});
  for (const HeadPlan& head : plan.heads) {
    const double total = head.time.total();
    const std::string name = head.name == "tile" ? fmt::format("tile of {}", config.replay.tile_tokens) : head.name;
    table.add({name, milliseconds(head.time.head), percent(head.time.head / total), milliseconds(total),
               head.name == "full" ? "" : percent(1.0 - total / full), format_bytes(head.memory.head)});
  }
  fmt::print("head  full cross-entropy beside the restricted ones, sets of {:.0f} ids\n{}", plan.set_size,
             table.text());
  const double share = [&] {
    for (const HeadPlan& head : plan.heads) {
      if (head.name == "full") return head.time.head / head.time.total();
    }
    return 0.0;
  }();
  if (share < 0.05) {
    fmt::print("  {}\n",
               wrapped(fmt::format("the full head is only {} of this step: a restricted one saves little time here",
                                   percent(share)),
                       kWidth, 2));
  }
  fmt::print("\n");
}

void print_whole_run(const Plan& plan, const RunConfig& config) {
  const auto ranks = static_cast<double>(plan.world_size);
  const auto hours = [&](double seconds) { return seconds * ranks / kHour; };
  const char* unit = plan.hardware.gpu ? "GPU-hours" : "rank-hours";
  fmt::print("whole run\n");
  if (plan.store_bytes > 0) {
    fmt::print("  store: {} positions, about {}\n", format_count(plan.store.positions), format_bytes(plan.store_bytes));
  }
  if (plan.steps > 0) {
    if (!config.replay.store.empty()) {
      fmt::print("  Stage 0, collection: {}, {:.1f} {}\n", long_time(plan.collect_seconds), hours(plan.collect_seconds),
                 unit);
    }
    fmt::print("  Stage 1, {} steps: {}, {:.1f} {}\n", format_count(plan.steps), long_time(plan.train_seconds),
               hours(plan.train_seconds), unit);
    const double all = plan.collect_seconds + plan.train_seconds;
    fmt::print("  together: {}, {:.1f} {}", long_time(all), hours(all), unit);
    if (plan.hardware.watts > 0.0)
      fmt::print(", {:.0f} kWh of the cards alone", hours(all) * plan.hardware.watts / 1e3);
    fmt::print("\n  without evaluations, checkpoints and start-up\n");
  }
  for (const std::string& note : plan.notes) fmt::print("\nnote: {}", wrapped(note, kWidth, 2));
  fmt::print("\n");
}

using Json = nlohmann::ordered_json;

Json to_json(const MemoryEstimate& memory) {
  return {{"weights", memory.weights},     {"gradients", memory.gradients},
          {"optimizer", memory.optimizer}, {"activations", memory.activations},
          {"head", memory.head},           {"workspace", memory.workspace},
          {"store", memory.store},         {"batches", memory.batches},
          {"program", memory.program},     {"device", memory.device()},
          {"host", memory.host()},         {"total", memory.total()}};
}

Json to_json(const StepTime& time) {
  return {{"products", time.products},
          {"attention", time.attention},
          {"passes", time.passes},
          {"recompute", time.recompute},
          {"head", time.head},
          {"optimizer", time.optimizer},
          {"tensor_exposed", time.tensor_exposed},
          {"data_exposed", time.data_exposed},
          {"tensor_all", time.tensor_all},
          {"data_all", time.data_all},
          {"total", time.total()}};
}

Json to_json(const Plan& plan) {
  Json json;
  json["model"] = {
      {"type", plan.model.model_type}, {"parameters", plan.parameters}, {"vocab_size", plan.model.vocab_size}};
  json["hardware"] = {{"name", plan.hardware.name},
                      {"matrix_share", plan.hardware.matrix_share},
                      {"evidence", plan.hardware.evidence},
                      {"validated", plan.hardware.validated},
                      {"usable_bytes", usable_bytes(plan.hardware)}};
  json["layout"] = {{"world", plan.world_size}, {"tensor", plan.tensor}, {"data", plan.data}};
  json["data"] = {{"read", plan.dataset.read},
                  {"sample_tokens", plan.dataset.sample_tokens},
                  {"targets_share", plan.dataset.targets_share},
                  {"samples", plan.dataset.samples},
                  {"tokens", plan.dataset.tokens}};
  json["step"] = {{"tokens", plan.tokens_per_step()},
                  {"micro_batches", plan.step.micro_batches},
                  {"tokens_per_micro_batch", plan.step.tokens},
                  {"targets_per_micro_batch", plan.step.targets},
                  {"tokens_per_second_per_rank",
                   plan.tokens_per_step() / plan.time().total() / static_cast<double>(plan.world_size)},
                  {"utilisation", plan.utilisation()}};
  json["memory"] = to_json(plan.memory());
  json["fits"] = plan.fits;
  json["fit"] = plan.fit;
  json["collectives"] = Json::array();
  for (const WireEstimate& line : plan.wire) {
    json["collectives"].push_back({{"group", line.group},
                                   {"verb", name_of(line.verb)},
                                   {"what", line.what},
                                   {"calls", line.calls},
                                   {"bytes", line.bytes}});
  }
  json["seconds"] = to_json(plan.time());
  json["heads"] = Json::object();
  for (const HeadPlan& head : plan.heads) {
    json["heads"][head.name] = {{"seconds", to_json(head.time)}, {"memory", to_json(head.memory)}};
  }
  json["set_size"] = plan.set_size;
  json["store"] = {{"positions", plan.store.positions}, {"ids", plan.store.ids}, {"bytes", plan.store_bytes}};
  const double hours = static_cast<double>(plan.world_size) / kHour;
  json["run"] = {{"steps", plan.steps},
                 {"collect_seconds", plan.collect_seconds},
                 {"train_seconds", plan.train_seconds},
                 {"rank_hours", hours * (plan.collect_seconds + plan.train_seconds)}};
  json["notes"] = plan.notes;
  return json;
}

void print_sweep(const Sweep& sweep, const RunConfig& config, const PlanOptions& options, bool json) {
  constexpr std::size_t kShown = 12;
  const std::size_t shown = std::min(kShown, sweep.rows.size());
  if (json) {
    Json list = Json::array();
    for (std::size_t i = 0; i < shown; ++i) {
      const SweepRow& row = sweep.rows[i];
      list.push_back({{"tensor", row.tensor},
                      {"data", row.data},
                      {"micro_batch", row.micro_batch},
                      {"recompute", row.recompute},
                      {"zero_stage", row.zero_stage},
                      {"across_nodes", row.across_nodes},
                      {"step_seconds", row.step_seconds},
                      {"tokens_per_second_per_rank", row.tokens_per_second_per_rank},
                      {"memory", to_json(row.memory)}});
    }
    fmt::print(
        "{}\n",
        Json{{"tried", sweep.tried}, {"fitting", sweep.fitting}, {"least_bytes", sweep.least_bytes}, {"rows", list}}
            .dump(2));
    return;
  }
  fmt::print("{} on {} {} ranks, batch of {}: {} layouts divide, {} of them fit\n\n", config.model.path,
             format_count(options.world_size), options.hardware, config.train.global_batch, sweep.tried, sweep.fitting);
  if (sweep.rows.empty()) {
    fmt::print("{}\n", wrapped("none fits: " + misfit(sweep, find_hardware(options.hardware)), kWidth, 0));
    return;
  }
  TextTable table("rrrlrrrrl");
  table.add({"tensor", "data", "micro-batch", "recompute", "ZeRO", "step ms", "tokens/s/rank", "memory", ""});
  for (std::size_t i = 0; i < shown; ++i) {
    const SweepRow& row = sweep.rows[i];
    table.add({fmt::format("{}", row.tensor), fmt::format("{}", row.data), fmt::format("{}", row.micro_batch),
               row.recompute, fmt::format("{}", row.zero_stage), milliseconds(row.step_seconds),
               format_count(static_cast<std::int64_t>(row.tokens_per_second_per_rank)),
               format_bytes(row.memory.device()), row.across_nodes ? "tensor spans nodes" : ""});
  }
  const SweepRow& best = sweep.rows.front();
  fmt::print(
      "{}\ncheapest: parallel.tensor={} parallel.sequence_parallel={} train.micro_batch={} train.recompute={} "
      "optimizer.zero_stage={}\n",
      table.text(), best.tensor, best.tensor > 1, best.micro_batch, best.recompute, best.zero_stage);
  if (best.across_nodes)
    fmt::print(
        "its copies of the model span several nodes: pipeline parallelism, which reprise has not, would be faster\n");
}

}  // namespace

void plan_command(const RunConfig& config, const PlanOptions& options, bool sweep, bool json) {
  if (sweep) {
    print_sweep(sweep_layouts(config, options), config, options, json);
    return;
  }
  const Plan plan = make_plan(config, options);
  if (json) {
    fmt::print("{}\n", to_json(plan).dump(2));
    return;
  }
  print_run(plan, config);
  print_memory(plan);
  print_wire(plan);
  print_time(plan);
  print_heads(plan, config);
  print_whole_run(plan, config);
}

void plan_against_command(const std::filesystem::path& measured) {
  const MeasuredSteps steps = read_measured_steps(measured);
  for (const MeasuredSource& source : steps.sources) {
    fmt::print("{}: {} ({}). {}\n", source.id, source.title, source.date, source.place);
  }
  fmt::print("\n{}", measured_steps_table(steps));
}

}  // namespace reprise
