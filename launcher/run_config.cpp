#include "launcher/run_config.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/error.hpp"
#include "launcher/run_config_fields.hpp"

namespace reprise {

namespace {

constexpr std::string_view kHeadline =
    "# A run of reprise: `reprise check` validates this file, `reprise collect` and `reprise train` carry it out.\n"
    "# Every key may be left out (these are the defaults) and overridden on the command line: optimizer.lr=2e-5.\n"
    "# Paths are relative to the folder that reprise is started in.\n";

/// What a commented line says of a key.
std::string explanation(const Field& field) {
  std::string text(field.comment);
  const auto add = [&](const std::string& more) { text += (text.empty() ? "" : "; ") + more; };
  if (!field.legal.choices.empty()) {
    std::string choices;
    for (const std::string_view choice : field.legal.choices) {
      choices += (choices.empty() ? "" : " | ") + std::string(choice);
    }
    add(choices);
  }
  return text;
}

/// The fields of one section, with their lines "key = value" and the width of the longest that leaves room behind it.
void print_section(std::string& text, std::span<const Field> fields, RunConfig& values, bool commented) {
  constexpr std::size_t kMaxColumn = 34;
  std::vector<std::string> lines;
  std::size_t column = 0;
  for (const Field& field : fields) {
    lines.push_back(fmt::format("{} = {}", field.key, to_toml_value(field.value(values))));
    if (lines.back().size() <= kMaxColumn) column = std::max(column, lines.back().size());
  }
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const std::string comment = commented ? explanation(fields[i]) : "";
    text += comment.empty() ? lines[i] : fmt::format("{:<{}}  # {}", lines[i], column, comment);
    text += '\n';
  }
}

std::map<std::string, std::string> printed_values(const RunConfig& config) {
  RunConfig copy = config;
  std::map<std::string, std::string> values;
  for (const Field& field : run_config_fields()) values[field.name()] = to_toml_value(field.value(copy));
  return values;
}

}  // namespace

Normalization RunConfig::normalization() const {
  if (replay.normalization == "token") return Normalization::kToken;
  if (replay.normalization == "tile") return Normalization::kTile;
  require(replay.normalization == "full", ErrorKind::kUsage,
          "replay.normalization = \"{}\": must be one of \"token\", \"tile\", \"full\"", replay.normalization);
  return Normalization::kFull;
}

TopKOptions RunConfig::top_k_options() const {
  return {.tau = replay.tau,
          .k_max = replay.k_max,
          .k_min = replay.k_min,
          .positions = parse_position_policy(replay.positions),
          .budget = replay.budget,
          .seed = static_cast<std::uint64_t>(data.seed),
          .log_probs = replay.log_probs};
}

OptimizerOptions RunConfig::optimizer_options() const {
  require(optimizer.betas.size() == 2, ErrorKind::kUsage, "optimizer.betas holds {} numbers: must be two",
          optimizer.betas.size());
  return {.name = optimizer.name,
          .beta1 = optimizer.betas[0],
          .beta2 = optimizer.betas[1],
          .eps = optimizer.eps,
          .weight_decay = optimizer.weight_decay,
          .clip_norm = optimizer.clip_norm,
          .max_angle = optimizer.max_angle,
          .angle_scope = parse_angle_scope(optimizer.angle_scope),
          .obtuse = parse_obtuse(optimizer.obtuse),
          .zero_stage = static_cast<int>(optimizer.zero_stage)};
}

LoraOptions RunConfig::lora_options() const {
  const bool all = std::find(lora.targets.begin(), lora.targets.end(), "all-linear") != lora.targets.end();
  LoraOptions options{.rank = lora.rank, .alpha = lora.alpha, .rslora = lora.rslora, .targets = {}};
  for (const std::string& name : lora_target_names()) {
    const bool named = std::find(lora.targets.begin(), lora.targets.end(), name) != lora.targets.end();
    if (all || named) options.targets.push_back(name);
  }
  return options;
}

ScheduleOptions RunConfig::schedule_options(std::int64_t total_steps) const {
  return {.lr = optimizer.lr,
          .warmup_steps = schedule.warmup_steps,
          .total_steps = total_steps,
          .decay = parse_decay(schedule.decay),
          .min_lr_ratio = schedule.min_lr_ratio};
}

std::string to_toml(const RunConfig& config, bool commented) {
  RunConfig values = config;
  std::string text(commented ? kHeadline : "");
  const auto fields = run_config_fields();
  for (std::size_t begin = 0; begin < fields.size();) {
    std::size_t end = begin;
    while (end < fields.size() && fields[end].section == fields[begin].section) ++end;
    text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", fields[begin].section);
    print_section(text, fields.subspan(begin, end - begin), values, commented);
    begin = end;
  }
  return text;
}

std::vector<std::string> differences(const RunConfig& from, const RunConfig& to) {
  const auto before = printed_values(from), after = printed_values(to);
  std::vector<std::string> lines;
  for (const Field& field : run_config_fields()) {
    const std::string& old_value = before.at(field.name());
    const std::string& new_value = after.at(field.name());
    if (old_value != new_value) lines.push_back(fmt::format("{}: {} -> {}", field.name(), old_value, new_value));
  }
  return lines;
}

std::vector<std::string> notes(const RunConfig& config) {
  const auto values = printed_values(config), defaults = printed_values(RunConfig{});
  std::vector<std::string> lines;
  const auto note = [&](bool idle, const std::string& key, const std::string& why) {
    if (idle && values.at(key) != defaults.at(key)) {
      lines.push_back(fmt::format("{} = {} has no effect: {}", key, values.at(key), why));
    }
  };
  const bool moclip = config.optimizer.name == "moclip", full = config.normalization() == Normalization::kFull;
  const bool by_hash = config.replay.positions == "random" || config.replay.positions == "bucket";
  for (const char* key : {"optimizer.max_angle", "optimizer.angle_scope", "optimizer.obtuse"}) {
    note(!moclip, key, "adamw measures no angle");
  }
  note(moclip, "optimizer.eps", "moclip has no epsilon");
  for (const char* key : {"optimizer.angle_scope", "optimizer.obtuse"}) {
    note(moclip && config.optimizer.max_angle == 180.0, key, "optimizer.max_angle = 180 turns no gradient");
  }
  note(config.replay.normalization != "tile", "replay.tile_tokens",
       fmt::format("replay.normalization is \"{}\", not \"tile\"", config.replay.normalization));
  note(full, "replay.negatives", "replay.normalization = \"full\" has the whole vocabulary");
  note(full && config.replay.store.empty(), "train.probe_every", "there is no store whose sets could be probed");
  for (const char* key : {"replay.tau", "replay.k_max", "replay.k_min", "replay.positions", "replay.budget",
                          "replay.log_probs", "replay.missing"}) {
    note(full && config.replay.store.empty(), key, "there is no store");
  }
  note(config.replay.budget == 0 && !config.replay.store.empty(), "replay.positions",
       "replay.budget = 0 records every target");
  const bool draws_adapters = config.lora.rank > 0 && config.lora.adapter.empty();
  note(config.train.seed != 1 && (full || config.replay.negatives == 0) && !draws_adapters, "train.seed",
       "no negatives are sampled and no adapters drawn");
  for (const char* key : {"lora.alpha", "lora.rslora", "lora.targets"}) {
    note(config.lora.rank == 0 && config.lora.adapter.empty(), key, "lora.rank = 0 trains the model itself");
  }
  note(!config.data.shuffle && (!by_hash || config.replay.budget == 0), "data.seed",
       "nothing is shuffled and no positions are drawn");
  note(config.data.general.empty(), "data.general_ratio", "data.general is empty");
  note(config.train.epochs > 0.0, "train.steps", "train.epochs is set");
  note(config.train.eval_every == 0, "data.eval", "train.eval_every = 0 evaluates never");
  note(config.data.eval.empty(), "train.eval_every", "data.eval is empty");
  note(config.schedule.decay == "constant", "schedule.min_lr_ratio", "schedule.decay is \"constant\"");
  note(config.parallel.tensor == 1, "parallel.sequence_parallel", "parallel.tensor = 1 shards no activations");
  return lines;
}

std::int64_t total_steps(const RunConfig& config, std::int64_t samples) {
  if (config.train.epochs <= 0.0) return config.train.steps;
  const double batch = static_cast<double>(config.train.global_batch) * (1.0 - config.general_ratio());
  const double steps = config.train.epochs * static_cast<double>(samples) / batch;
  require(steps < 2147483648.0, ErrorKind::kUsage, "train.epochs = {}: {} samples give too many steps",
          config.train.epochs, samples);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(steps)));
}

}  // namespace reprise
