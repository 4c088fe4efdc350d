#include "launcher/peft_adapter.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "core/file_io.hpp"
#include "core/sha256.hpp"
#include "core/strict_json.hpp"
#include "core/transfer.hpp"
#include "launcher/hash_cache.hpp"
#include "launcher/output_folder.hpp"
#include "launcher/safetensors.hpp"
#include "parallel/agree.hpp"

namespace reprise {

namespace {

using nlohmann::json;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kWeightFile = "adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.";

/// Keys that do not change what an adapter computes, whatever they hold.
const std::set<std::string> kNeutralKeys = {
    "auto_mapping",     "base_model_name_or_path", "exclude_modules", "inference_mode",    "layers_pattern",
    "lora_dropout",     "megatron_core",           "peft_version",    "qalora_group_size", "revision",
    "target_modules",   "layers_to_transform",     "runtime_config",  "task_type",         "ensure_weight_tying",
    "init_lora_weights"};
/// Those that read_peft_options looks at itself.
const std::set<std::string> kReadKeys = {"peft_type", "r", "lora_alpha", "use_rslora", "bias"};

void require_folder(const std::filesystem::path& folder) {
  require(std::filesystem::exists(folder / kConfigFile), ErrorKind::kUsage,
          "{}: no {} there; an adapter folder is written by peft, or by `reprise export` of a run with [lora]",
          folder.string(), kConfigFile);
}

bool is_unset(const json& value) {
  return value.is_null() || value == false || ((value.is_array() || value.is_object()) && value.empty()) || value == "";
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& key, const json& value,
                         const std::string& why) {
  fail(ErrorKind::kUsage, "{}: {} = {}: {}", path.string(), key, value.dump().substr(0, 200), why);
}

/// What init_lora_weights may name: the others change the base's weights or need a file of their own.
bool keeps_base(const json& value) {
  return value.is_null() || value.is_boolean() || value == "gaussian" || value == "orthogonal" || value == "eva";
}

void check_keys(const json& config, const std::filesystem::path& path) {
  require(config.contains("peft_type"), ErrorKind::kUsage, "{}: has no peft_type", path.string());
  if (config["peft_type"] != "LORA") refuse(path, "peft_type", config["peft_type"], "only \"LORA\" is supported");
  const json task = config.value("task_type", json());
  if (!task.is_null() && task != "CAUSAL_LM") refuse(path, "task_type", task, "only \"CAUSAL_LM\" is supported");
  const json bias = config.value("bias", json("none"));
  if (bias != "none") refuse(path, "bias", bias, "only \"none\" is supported: biases stay frozen");
  const json initial = config.value("init_lora_weights", json());
  if (!keeps_base(initial)) {
    refuse(path, "init_lora_weights", initial,
           "it belongs to a base with other weights; convert it with peft's path_initial_model_for_weight_conversion");
  }
  for (const auto& [key, value] : config.items()) {
    if (kReadKeys.contains(key) || kNeutralKeys.contains(key) || is_unset(value)) continue;
    refuse(path, key, value, "not supported; adapters are plain LoRA, y = x W^T + s (x A^T) B^T");
  }
}

/// "model.layers.0.self_attn.q_proj.lora_A.weight" of a stored name; empty where it is no adapter's.
std::string parameter_name(const std::string& stored) {
  const bool is_factor = stored.ends_with(".lora_A.weight") || stored.ends_with(".lora_B.weight");
  return is_factor && stored.starts_with(kPrefix) ? stored.substr(kPrefix.size()) : "";
}

/// The projections that the file adapts, in the order of lora_target_names().
std::vector<std::string> targets_of(const SafetensorsReader& file) {
  std::set<std::string> found;
  for (const SafetensorsEntry& entry : file.entries()) {
    std::string name = parameter_name(entry.name);
    const std::size_t factor = name.rfind(".lora_");
    if (factor == std::string::npos) continue;
    name.resize(factor);
    found.insert(name.substr(name.rfind('.') + 1));
  }
  std::vector<std::string> targets;
  for (const std::string& name : lora_target_names()) {
    if (found.contains(name)) targets.push_back(name);
  }
  return targets;
}

SafetensorsReader open_weights(const std::filesystem::path& folder) {
  require(std::filesystem::exists(folder / kWeightFile), ErrorKind::kUsage,
          "{}: {} is not there; adapters in other formats must be saved as safetensors", folder.string(), kWeightFile);
  return SafetensorsReader(folder / kWeightFile);
}

void check_tensors(const SafetensorsReader& file, const std::vector<ParameterSpec>& specs) {
  std::vector<std::string> problems;
  std::set<std::string> expected;
  for (const ParameterSpec& spec : specs) {
    const std::string name = std::string(kPrefix) + spec.name;
    expected.insert(name);
    const SafetensorsEntry* const entry = file.find(name);
    const std::vector<std::int64_t> shape = {spec.global_rows, spec.global_cols};
    if (entry == nullptr) {
      problems.push_back("missing: " + name);
    } else if (entry->shape != shape) {
      problems.push_back(fmt::format("{} is [{}], {} and the model's config.json mean [{}]", name,
                                     fmt::join(entry->shape, ", "), kConfigFile, fmt::join(shape, ", ")));
    }
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!expected.contains(entry.name)) problems.push_back("unexpected: " + entry.name);
  }
  constexpr std::size_t kShown = 10;
  const std::size_t more = problems.size() - std::min(problems.size(), kShown);
  problems.resize(problems.size() - more);
  require(problems.empty(), ErrorKind::kUsage,
          "{}: the tensors do not fit the model; adapters of {} in every layer are supported\n  {}{}",
          file.path().string(), fmt::join(lora_target_names(), ", "), fmt::join(problems, "\n  "),
          more > 0 ? fmt::format("\n  and {} more", more) : "");
}

json number(double value) {
  const bool is_integer = value == static_cast<double>(static_cast<std::int64_t>(value));
  return is_integer ? json(static_cast<std::int64_t>(value)) : json(value);
}

std::string config_text(const PeftExport& what) {
  nlohmann::ordered_json config;
  config["base_model_name_or_path"] = std::filesystem::absolute(what.base).lexically_normal().string();
  config["bias"] = "none";
  config["fan_in_fan_out"] = false;
  config["inference_mode"] = true;
  config["init_lora_weights"] = true;
  config["lora_alpha"] = number(what.lora.alpha);
  config["lora_dropout"] = 0.0;
  config["modules_to_save"] = nullptr;
  config["peft_type"] = "LORA";
  config["r"] = what.lora.rank;
  config["target_modules"] = what.lora.targets;
  config["task_type"] = "CAUSAL_LM";
  config["use_dora"] = false;
  config["use_rslora"] = what.lora.rslora;
  return config.dump(2) + "\n";
}

/// The whole of a tensor, on every rank of the group. One all-gather of places and one of values.
std::vector<float> gather_whole(Communicator& tp, const ParameterSpec& spec, VectorView<const float> own) {
  const Stream host{CpuStream{}};
  const std::vector<std::int64_t> place = {spec.row_begin, spec.row_end, spec.col_begin, spec.col_end};
  std::vector<std::int64_t> places(place.size() * static_cast<std::size_t>(tp.size())), counts;
  tp.all_gather<std::int64_t>(host, place, places);
  for (std::size_t r = 0; r < places.size(); r += place.size()) {
    counts.push_back((places[r + 1] - places[r]) * (places[r + 3] - places[r + 2]));
  }
  std::vector<float> parts(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
  tp.all_gather<float>(host, own, parts, counts);
  std::vector<float> whole(static_cast<std::size_t>(spec.global_size()));
  auto part = parts.begin();
  for (std::size_t r = 0; r < places.size(); r += place.size()) {  // copies hold the same bits
    const std::int64_t cols = places[r + 3] - places[r + 2];
    for (std::int64_t row = places[r]; row < places[r + 1]; ++row, part += cols) {
      std::copy_n(part, cols, whole.begin() + row * spec.global_cols + places[r + 2]);
    }
  }
  return whole;
}

}  // namespace

LoraOptions read_peft_options(const std::filesystem::path& folder) {
  require_folder(folder);
  const std::filesystem::path path = folder / kConfigFile;
  const json config = read_json_object(path, ErrorKind::kUsage);
  check_keys(config, path);
  LoraOptions options;
  const json rank = config.value("r", json()), alpha = config.value("lora_alpha", json());
  constexpr std::int64_t kMostRank = 65536;
  if (!rank.is_number_unsigned() || rank < 1 || rank > kMostRank)
    refuse(path, "r", rank, "must be a rank of at least 1");
  if (!alpha.is_number() || !(alpha.get<double>() > 0.0)) refuse(path, "lora_alpha", alpha, "must be above 0");
  const json rslora = config.value("use_rslora", json(false));
  if (!rslora.is_boolean()) refuse(path, "use_rslora", rslora, "must be true or false");
  options.rank = rank.get<std::int64_t>();
  options.alpha = alpha.get<double>();
  options.rslora = rslora.get<bool>();
  options.targets = targets_of(open_weights(folder));
  require(!options.targets.empty(), ErrorKind::kUsage, "{}: holds no adapter of {}", (folder / kWeightFile).string(),
          fmt::join(lora_target_names(), ", "));
  return options;
}

AdapterOptions adapter_in(const std::filesystem::path& folder) {
  if (folder.empty()) return {};
  return {read_peft_options(folder), folder};
}

AdapterOptions trained_adapter(const RunConfig& config) {
  if (!config.lora.adapter.empty()) return adapter_in(config.lora.adapter);
  return {config.lora_options(), {}, static_cast<std::uint64_t>(config.train.seed)};
}

RunConfig with_adapter_settings(RunConfig config) {
  if (config.lora.adapter.empty()) return config;
  const LoraOptions options = read_peft_options(config.lora.adapter);
  require(config.lora.rank == 0 || config.lora.rank == options.rank, ErrorKind::kUsage,
          "lora.rank = {}, but lora.adapter = \"{}\" has rank {}; leave lora.rank at 0 to go on with that",
          config.lora.rank, config.lora.adapter, options.rank);
  config.lora.rank = options.rank;
  config.lora.alpha = options.alpha;
  config.lora.rslora = options.rslora;
  config.lora.targets = options.targets;
  return config;
}

template <class T>
void load_peft_adapter(const std::filesystem::path& folder, ParameterSet<T>& adapters) {
  const SafetensorsReader file = open_weights(folder);
  check_tensors(file, adapters.specs());
  for (std::int64_t i = 0; i < adapters.count(); ++i) {
    const ParameterSpec& spec = adapters.spec(i);
    std::vector<T> values(static_cast<std::size_t>(spec.size()));
    file.read<T>(file.at(std::string(kPrefix) + spec.name), {spec.row_begin, spec.row_end},
                 {spec.col_begin, spec.col_end}, {values, spec.rows(), spec.cols()});
    copy_to_device<T>(adapters.stream(), values, adapters.value(i).flat());
  }
}

template void load_peft_adapter<float>(const std::filesystem::path&, ParameterSet<float>&);
template void load_peft_adapter<BFloat16>(const std::filesystem::path&, ParameterSet<BFloat16>&);

void export_peft_adapter(const ProcessGroups& groups, ParameterSet<float>& adapters, const PeftExport& what,
                         const std::filesystem::path& output) {
  if (groups.dp_rank() != 0) return;
  Communicator& tp = *groups.tp;
  const std::string dtype = what.dtype == "float32" ? "F32" : what.dtype == "bfloat16" ? "BF16" : "F16";
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterSpec& spec : adapters.specs()) {
    tensors.push_back({std::string(kPrefix) + spec.name, dtype, {spec.global_rows, spec.global_cols}});
  }
  std::filesystem::path part;
  std::optional<SafetensorsWriter> writer;
  agree(tp, [&] {
    if (tp.rank() != 0) return;
    part = begin_folder(output);
    writer.emplace(part / kWeightFile, tensors, std::map<std::string, std::string>{{"format", "pt"}});
  });
  for (std::int64_t i = 0; i < adapters.count(); ++i) {
    const auto own = on_host(adapters.stream(), adapters.value(i).flat());
    const std::vector<float> whole = gather_whole(tp, adapters.spec(i), own.view());
    if (writer) writer->write<float>(tensors[static_cast<std::size_t>(i)].name, whole);
  }
  agree(tp, [&] {
    if (tp.rank() != 0) return;
    writer->finish();
    write_file_atomically(part / kConfigFile, config_text(what));
    finish_folder(part, output);
  });
}

std::string adapted_fingerprint(const std::string& model, const std::filesystem::path& adapter, Communicator* world,
                                const std::filesystem::path& cache) {
  if (adapter.empty()) return model;
  require_folder(adapter);
  const std::vector<std::filesystem::path> paths = {adapter / kConfigFile, adapter / kWeightFile};
  std::string text = model + "\n";
  for (const std::string& hash : cached_sha256_tree(paths, ErrorKind::kUsage, cache, world)) text += hash + "\n";
  return sha256_hex(text);
}

}  // namespace reprise
