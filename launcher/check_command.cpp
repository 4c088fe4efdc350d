#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launcher/check_report.hpp"
#include "launcher/commands.hpp"
#include "launcher/machine_info.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"

namespace reprise {

namespace {

std::string share_text(std::int64_t part, std::int64_t whole) {
  if (part == 0) return "0";
  return fmt::format("{} ({:.1f} %)", format_count(part),
                     100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string parameter_text(std::int64_t parameters) {
  const auto count = static_cast<double>(parameters);
  if (count >= 1e9) return fmt::format("{:.2f} B", count / 1e9);
  return count >= 1e6 ? fmt::format("{:.1f} M", count / 1e6) : format_count(parameters);
}

void print_model(const CheckReport& report, const RunConfig& config) {
  const DecoderConfig& model = report.model;
  fmt::print("model  {}\n", config.model.path);
  fmt::print("  {}, {} parameters, {} layers of {}, {} heads ({} for keys and values) of {}{}\n", model.model_type,
             parameter_text(report.parameters), model.num_layers, model.hidden_size, model.num_heads,
             model.num_kv_heads, model.head_dim, model.tie_word_embeddings ? ", tied embeddings" : "");
  fmt::print("  weights {} of {}, computed in {}\n", format_bytes(report.weight_bytes), report.weight_dtype,
             config.model.dtype);
  if (model.padding_rows > 0) {
    fmt::print("  vocabulary: {} of {} rows, {} padding rows never enter a softmax", format_count(model.vocab_size),
               format_count(model.vocab_rows()), format_count(model.padding_rows));
  } else {
    fmt::print("  vocabulary: {} rows, all of them in the softmax", format_count(model.vocab_size));
  }
  fmt::print("\n\n");
}

void print_data(const CheckReport& report, const RunConfig& config) {
  TextTable table("llrrrrrrrr");
  table.add({"", "prefix", "samples", "tokens", "targets", "truncated", "no target", "largest id", "share", "epochs"});
  for (const DataReport& data : report.data) {
    const DataStatistics& statistics = data.statistics;
    table.add({data.role, data.prefix, format_count(statistics.samples), format_count(statistics.tokens),
               format_count(statistics.targets), share_text(statistics.truncated, statistics.samples),
               share_text(statistics.without_targets, statistics.samples), fmt::format("{}", data.largest_id),
               data.share > 0.0 ? fmt::format("{:.1f} %", 100.0 * data.share) : "",
               data.share > 0.0 ? fmt::format("{:.2f}", data.epochs) : ""});
  }
  fmt::print("data  at {} tokens a sample\n{}\n", config.data.sequence_length, table.text());
}

void print_run(const CheckReport& report, const RunConfig& config) {
  const StepShape& step = report.step;
  const double all = step.micro_batches * static_cast<double>(report.data_size);
  fmt::print("run  {} rank{} = tensor {} x data {}\n", report.world_size, report.world_size == 1 ? "" : "s",
             report.tensor_size, report.data_size);
  fmt::print("  {} steps of {} samples: {:.2f} epochs of the training data\n", format_count(report.steps),
             config.train.global_batch, report.epochs);
  fmt::print("  a step: {:.1f} micro-batches a rank, {} tokens and {} targets over all ranks\n", step.micro_batches,
             format_count(static_cast<std::int64_t>(all * step.tokens)),
             format_count(static_cast<std::int64_t>(all * step.targets)));
  fmt::print("  {} over {} sets, lr {} ({}{})\n\n", config.optimizer.name, config.replay.normalization,
             config.optimizer.lr, config.schedule.decay,
             config.schedule.warmup_steps > 0 ? fmt::format(", {} warm-up steps", config.schedule.warmup_steps) : "");
}

void print_store(const CheckReport& report, const RunConfig& config) {
  if (config.replay.store.empty()) return;
  fmt::print("store  {}\n", config.replay.store);
  const double logits =
      2.0 * static_cast<double>(report.model.vocab_size) * static_cast<double>(report.store.positions);
  const double share = logits > 0.0 ? 100.0 * static_cast<double>(report.store_bytes) / logits : 0.0;
  if (report.store_exists) {
    fmt::print(
        "  belongs to this run: {} positions, {:.1f} ids each, {}, {:.3f} % of their bfloat16 logits\n\n",
        format_count(report.store.positions),
        static_cast<double>(report.store.ids) / static_cast<double>(std::max<std::int64_t>(1, report.store.positions)),
        format_bytes(report.store_bytes), share);
    return;
  }
  fmt::print(
      "  to be collected: {} positions, about {} ({:.3f} % of their bfloat16 logits) at {} ids each, at most {}\n\n",
      format_count(report.store.positions), format_bytes(report.store_bytes), share,
      report.store.ids / std::max<std::int64_t>(1, report.store.positions), format_bytes(report.store_largest_bytes));
}

void print_memory(const CheckReport& report, const RunConfig& config) {
  const MemoryEstimate& memory = report.memory;
  TextTable table("rl");
  const auto add = [&](std::int64_t bytes, const char* what) {
    if (bytes != 0) table.add({format_bytes(bytes), what});
  };
  add(memory.weights, "weights");
  add(memory.gradients, "gradients (float32)");
  add(memory.optimizer, config.model.dtype == "float32" ? "optimizer: moments" : "optimizer: master weights, moments");
  add(memory.activations, "activations of the largest micro-batch");
  add(memory.head, "loss head");
  add(memory.workspace, "workspaces of libraries and collectives");
  add(-memory.released, "of the gradients, given back before others are there (ZeRO 2)");
  add(memory.store, "replay store");
  add(memory.batches, "micro-batches that are prepared ahead");
  add(memory.program, "program and libraries");
  table.add_rule();
  table.add({format_bytes(memory.total()), "a rank"});
  if (report.world_size > 1) {
    table.add({format_bytes(memory.total() * report.world_size), "all ranks together"});
  }
  fmt::print("memory  of the rank that needs most; this machine has {}\n{}\n",
             format_bytes(read_machine_info().memory_bytes), table.text());
}

void print_wire(const CheckReport& report) {
  if (report.wire.empty()) return;
  TextTable table("llrrl");
  table.add({"group", "collective", "calls", "sent", ""});
  double calls = 0.0, bytes = 0.0;
  for (const WireEstimate& line : report.wire) {
    table.add({line.group, std::string(name_of(line.verb)), fmt::format("{:.0f}", line.calls),
               format_bytes(static_cast<std::int64_t>(line.bytes)), line.what});
    calls += line.calls;
    bytes += line.bytes;
  }
  table.add_rule();
  table.add({"", "", fmt::format("{:.0f}", calls), format_bytes(static_cast<std::int64_t>(bytes)), ""});
  fmt::print("collectives  of a step, by one rank\n{}\n", table.text());
}

void print_disk(const CheckReport& report) {
  TextTable table("llrrl");
  table.add({"", "path", "needs", "free", ""});
  for (const DiskReport& disk : report.disk) {
    table.add({disk.key, disk.path.string(), format_bytes(disk.needed), format_bytes(disk.free), disk.file_system});
  }
  fmt::print("disk\n{}", table.text());
}

nlohmann::ordered_json to_json(const CheckReport& report) {
  using Json = nlohmann::ordered_json;
  Json json;
  json["model"] = {{"type", report.model.model_type},
                   {"parameters", report.parameters},
                   {"vocab_size", report.model.vocab_size},
                   {"vocab_rows", report.model.vocab_rows()},
                   {"largest_token_id", report.largest_token_id},
                   {"weight_dtype", report.weight_dtype},
                   {"weight_bytes", report.weight_bytes}};
  json["data"] = Json::array();
  for (const DataReport& data : report.data) {
    const DataStatistics& statistics = data.statistics;
    json["data"].push_back({{"role", data.role},
                            {"prefix", data.prefix},
                            {"samples", statistics.samples},
                            {"tokens", statistics.tokens},
                            {"targets", statistics.targets},
                            {"share", data.share},
                            {"epochs", data.epochs},
                            {"truncated", statistics.truncated},
                            {"without_targets", statistics.without_targets},
                            {"longest", statistics.longest},
                            {"largest_id", data.largest_id},
                            {"mask", data.has_mask},
                            {"weight", data.has_weight}});
  }
  json["layout"] = {{"world", report.world_size}, {"tensor", report.tensor_size}, {"data", report.data_size}};
  json["run"] = {{"steps", report.steps},
                 {"epochs", report.epochs},
                 {"micro_batches", report.step.micro_batches},
                 {"tokens_per_micro_batch", report.step.tokens},
                 {"targets_per_micro_batch", report.step.targets}};
  json["store"] = {{"exists", report.store_exists},
                   {"positions", report.store.positions},
                   {"ids", report.store.ids},
                   {"bytes", report.store_bytes},
                   {"largest_bytes", report.store_largest_bytes}};
  const MemoryEstimate& memory = report.memory;
  json["memory"] = {{"weights", memory.weights},     {"gradients", memory.gradients},
                    {"optimizer", memory.optimizer}, {"activations", memory.activations},
                    {"head", memory.head},           {"workspace", memory.workspace},
                    {"released", memory.released},   {"store", memory.store},
                    {"batches", memory.batches},     {"program", memory.program},
                    {"device", memory.device()},     {"host", memory.host()},
                    {"total", memory.total()}};
  json["collectives"] = Json::array();
  for (const WireEstimate& line : report.wire) {
    json["collectives"].push_back({{"group", line.group},
                                   {"verb", name_of(line.verb)},
                                   {"what", line.what},
                                   {"calls", line.calls},
                                   {"bytes", line.bytes}});
  }
  json["disk"] = Json::array();
  for (const DiskReport& disk : report.disk) {
    json["disk"].push_back(
        {{"key", disk.key}, {"path", disk.path.string()}, {"needed", disk.needed}, {"free", disk.free}});
  }
  json["notes"] = report.notes;
  json["warnings"] = report.warnings;
  return json;
}

}  // namespace

void check_command(const RunConfig& config, std::int64_t world_size, bool json) {
  const CheckReport report = make_check_report(config, world_size);
  if (json) {
    fmt::print("{}\n", to_json(report).dump(2));
    return;
  }
  print_model(report, config);
  print_data(report, config);
  print_run(report, config);
  print_store(report, config);
  print_memory(report, config);
  print_wire(report);
  print_disk(report);
  if (!report.notes.empty() || !report.warnings.empty()) fmt::print("\n");
  for (const std::string& note : report.notes) fmt::print("note: {}\n", wrapped(note, 100, 2));
  for (const std::string& warning : report.warnings) fmt::print("warning: {}\n", wrapped(warning, 100, 2));
  fmt::print("\n{}\n", report.warnings.empty() ? "ready to run" : "ready to run, but look at the warnings");
}

}  // namespace reprise
