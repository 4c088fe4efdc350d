#include "launcher/run_folder.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "core/elementwise.hpp"
#include "core/file_io.hpp"
#include "core/gemm.hpp"
#include "core/strict_json.hpp"
#include "launcher/machine_info.hpp"

namespace reprise {

namespace {

/// Keys that may change between the parts of a run: they move files, ranks or reports, not the mathematics. Contents
/// of files are compared by their hashes.
constexpr std::array<std::string_view, 23> kFreeKeys = {"lora.adapter",
                                                        "model.path",
                                                        "data.train",
                                                        "data.general",
                                                        "data.eval",
                                                        "data.pack",
                                                        "replay.store",
                                                        "train.steps",
                                                        "train.epochs",
                                                        "train.micro_batch",
                                                        "train.recompute",
                                                        "train.keep",
                                                        "train.eval_every",
                                                        "train.checkpoint_every",
                                                        "train.log_every",
                                                        "train.probe_every",
                                                        "optimizer.zero_stage",
                                                        "optimizer.max_skips",
                                                        "parallel.tensor",
                                                        "parallel.sequence_parallel",
                                                        "parallel.device",
                                                        "parallel.transport",
                                                        "run.folder"};

void remove_earlier_run(const RunFolder& folder) {
  for (const auto& path : {folder.metrics(), folder.checkpoints(), folder.provenance(), folder.run_toml()}) {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    require(!error, ErrorKind::kDisk, "{}: cannot be removed: {}", path.string(), error.message());
  }
}

/// The hashes of what a run reads: model, tokenizer, template, and each prefix of data.train and data.general.
nlohmann::ordered_json input_hashes(const StoreProvenance& inputs) {
  nlohmann::ordered_json hashes;
  for (const char* key : {"model", "tokenizer", "template"}) hashes[key] = inputs.at(key);
  for (const auto& [key, value] : inputs) {
    if (key.starts_with("data") || key.starts_with("general")) hashes[key] = value;
  }
  return hashes;
}

/// Which prefixes hold other data than when the run began, by their key in the run file; empty = none.
std::string changed_data(const nlohmann::json& before, const nlohmann::json& now) {
  const auto value_of = [](const nlohmann::json& hashes, const std::string& key) {
    return hashes.contains(key) ? hashes[key] : nlohmann::json();
  };
  std::set<std::string> changed;
  for (const auto* hashes : {&before, &now}) {
    for (const auto& [key, value] : hashes->items()) {
      if (key.starts_with("data") && value_of(before, key) != value_of(now, key)) changed.insert("data.train");
      if (key.starts_with("general") && value_of(before, key) != value_of(now, key)) changed.insert("data.general");
    }
  }
  return fmt::format("{}", fmt::join(changed, ", "));
}

nlohmann::ordered_json device_json(const Session& session) {
  const GpuInfo* const gpu = session.gpu();
  if (gpu == nullptr) return {{"kind", "cpu"}};
  const GpuSupport support = gpu_support();
  nlohmann::ordered_json json = {{"kind", "cuda"},
                                 {"name", gpu->name},
                                 {"memory_bytes", gpu->memory_bytes},
                                 {"capability", capability_text(gpu->capability)},
                                 {"transport", session.device_transport()},
                                 {"cuda", support.cuda_version},
                                 {"driver_cuda", support.driver_cuda}};
  if (!support.driver.empty()) json["driver"] = support.driver;
  if (!support.nccl_version.empty()) json["nccl"] = support.nccl_version;
  return json;
}

}  // namespace

RunFolder::RunFolder(Communicator& world, std::filesystem::path folder, bool fresh) : path_(std::move(folder)) {
  if (world.rank() == 0) {
    lock_.emplace(path_);
    if (fresh) remove_earlier_run(*this);
  }
  world.barrier();
}

void write_provenance(const RunFolder& folder, const RunConfig& config, Session& session,
                      const StoreProvenance& inputs) {
  write_file_atomically(folder.run_toml(), to_toml(config));
  nlohmann::ordered_json json;
  json["version"] = REPRISE_VERSION;
  json["model_path"] = std::filesystem::absolute(config.model.path).lexically_normal().string();
  json["sha256"] = input_hashes(inputs);
  json["layout"] = {{"tensor", session.groups().tp_size()},
                    {"data", session.groups().dp_size()},
                    {"sequence_parallel", config.parallel.sequence_parallel},
                    {"threads_per_rank", session.host().cpu().num_threads()}};
  json["device"] = device_json(session);
  const MachineInfo machine = read_machine_info();
  json["host"] = machine.host;
  json["system"] = machine.system;
  json["cpu"] = machine.cpu_model;
  json["simd"] = simd_level_name();
  json["blas_kernel"] = gemm_kernel_name();
  json["compiler"] = __VERSION__;
  write_file_atomically(folder.provenance(), json.dump(2) + "\n");
}

void require_same_run(const RunFolder& folder, const TrainerState& state, const RunConfig& config,
                      const StoreProvenance& inputs) {
  const RunConfig before = parse_run_config(state.run_toml, "the checkpoint's run file", {});
  const bool no_store = config.normalization() == Normalization::kFull && config.replay.store.empty();
  std::string changed;
  for (const std::string& line : differences(before, config)) {
    const std::string key = line.substr(0, line.find(':'));
    const bool unused = no_store && before.replay.store.empty() && key.starts_with("replay.");
    if (unused || std::find(kFreeKeys.begin(), kFreeKeys.end(), key) != kFreeKeys.end()) continue;
    changed += "\n  " + line;
  }
  require(changed.empty(), ErrorKind::kUsage,
          "{}: this run began with other settings; restore them, name another run.folder, or start over with "
          "--fresh:{}",
          folder.path().string(), changed);
  require(before.train.steps <= config.train.steps, ErrorKind::kUsage,
          "{}: this run began with train.steps = {}, now {}; more steps are possible, fewer are not",
          folder.path().string(), before.train.steps, config.train.steps);
  require(state.model_fingerprint == inputs.at("model"), ErrorKind::kCheckpoint,
          "{}: the checkpoint was trained from another model than {} (its files have changed, or model.path has); "
          "restore the model, or start over with --fresh",
          folder.path().string(), config.model.path);
  if (!std::filesystem::exists(folder.provenance())) return;
  const nlohmann::json json = read_json_object(folder.provenance(), ErrorKind::kCheckpoint);
  const std::string changed_keys = changed_data(json.value("sha256", nlohmann::json::object()), input_hashes(inputs));
  require(changed_keys.empty(), ErrorKind::kStoreMismatch,
          "{}: this run began with other data than {} now holds; restore it, or start over with --fresh",
          folder.path().string(), changed_keys);
}

}  // namespace reprise
