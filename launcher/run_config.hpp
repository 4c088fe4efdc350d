#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/device_plan.hpp"
#include "layers/lora.hpp"
#include "loss/loss.hpp"
#include "loss/top_k.hpp"
#include "optimizer/optimizer.hpp"
#include "optimizer/schedule.hpp"

namespace reprise {

/// One TOML file names everything about a run; these are its keys, their units and defaults. Paths are relative to the
/// folder that the program was started in. Every key is live: one that cannot apply to the chosen run is named by
/// `check` (`notes`), never silently ignored.
struct RunConfig {
  struct Model {
    std::string path = "base";      ///< Hugging Face folder
    std::string dtype = "float32";  ///< storage of parameters and activations; or "bfloat16"
    std::int64_t vocab_size = 0;    ///< ids; 0 = what tokenizer.json has, without one all rows of config.json
  } model;
  struct Data {
    std::vector<std::string> train = {"data/domain"};  ///< prefixes of .bin .idx (.mask.bin .weight.bin)
    std::vector<double> weights;                       ///< one a prefix of `train`, or none: as one list
    std::vector<std::string> general;                  ///< prefixes that train under full cross-entropy
    double general_ratio = 0.1;                        ///< of the samples, when `general` names any
    std::vector<std::string> eval;                     ///< prefixes
    std::int64_t sequence_length = 512;
    bool pack = false;
    bool shuffle = true;
    std::int64_t seed = 1;  ///< of the shuffle and of the position policies
  } data;
  struct Replay {
    std::string store = "store";  ///< folder; "" = none, only with normalization "full": every target trains
    double tau = 0.95;
    std::int64_t k_max = 200, k_min = 1;
    std::string positions = "all";
    std::int64_t budget = 0;
    std::string normalization = "tile";
    std::int64_t tile_tokens = 8;
    std::int64_t negatives = 0;
    bool log_probs = false;
    std::string missing = "error";  ///< or "skip"
  } replay;
  struct OptimizerKeys {
    std::string name = "moclip";
    double lr = 1e-4;
    std::vector<double> betas = {0.9, 0.95};
    double eps = 1e-8;
    double weight_decay = 0.0;
    double clip_norm = 1.0;
    double max_angle = 45.0;
    std::string angle_scope = "tensor";
    std::string obtuse = "keep";
    std::int64_t zero_stage = 1;
    std::int64_t max_skips = 10;
  } optimizer;
  struct LoraKeys {
    std::int64_t rank = 0;  ///< 0 = every parameter trains, unless `adapter` names a folder
    double alpha = 16.0;
    bool rslora = false;
    std::vector<std::string> targets = {"all-linear"};
    std::string adapter;  ///< PEFT folder: its rank, alpha, rslora and targets are taken
  } lora;
  struct ScheduleKeys {
    std::int64_t warmup_steps = 0;
    std::string decay = "cosine";
    double min_lr_ratio = 0.1;
  } schedule;
  struct Train {
    std::int64_t steps = 100;
    double epochs = 0.0;  ///< > 0: of data.train instead of steps, see total_steps
    std::int64_t global_batch = 32, micro_batch = 4;
    std::string recompute = "none";  ///< | selective | layer
    std::int64_t eval_every = 0;     ///< > 0: also before the first and after the last step
    std::int64_t checkpoint_every = 0;
    std::int64_t keep = 3;
    std::int64_t log_every = 1;
    std::int64_t probe_every = 50;
    std::int64_t seed = 1;  ///< of the sampled negatives and of new adapters
  } train;
  struct Parallel {
    std::int64_t tensor = 1;
    bool sequence_parallel = false;
    bool overlap = true;             ///< of the traffic of gradients and parameters with the layers
    std::string device = "auto";     ///< auto | cpu | cuda
    std::string transport = "auto";  ///< auto | self | thread | mpi | nccl | staged
  } parallel;
  struct Run {
    std::string folder = "runs/default";
  } run;

  // The same choices as the libraries want them. Throw Error(kUsage) naming key and legal values.
  [[nodiscard]] Normalization normalization() const;
  [[nodiscard]] TopKOptions top_k_options() const;
  /// data.general_ratio, 0 without data.general.
  [[nodiscard]] double general_ratio() const { return data.general.empty() ? 0.0 : data.general_ratio; }
  [[nodiscard]] OptimizerOptions optimizer_options() const;
  /// Of new adapters: rank 0 without. See trained_adapter for those of lora.adapter.
  [[nodiscard]] LoraOptions lora_options() const;
  [[nodiscard]] DeviceOptions device_options() const { return {parallel.device, parallel.transport, run.folder}; }
  [[nodiscard]] ScheduleOptions schedule_options(std::int64_t total_steps) const;
};

/// Reads `path` and applies dotted overrides ("optimizer.lr=2e-5"; the right side is TOML, a bare word is a string).
/// Throws Error(kUsage): syntax, wrong types and unknown keys with file, line, column and the nearest key; values out
/// of range with key, value and the legal ones.
[[nodiscard]] RunConfig read_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);
/// The same on a text; `name` stands for the file in messages.
[[nodiscard]] RunConfig parse_run_config(std::string_view text, const std::string& name,
                                         const std::vector<std::string>& overrides);
/// Every key with its value, as TOML that `parse_run_config` reads back to the same values (shortest round-trip
/// numbers). With `commented`, each key carries its explanation: what `init` writes.
[[nodiscard]] std::string to_toml(const RunConfig& config, bool commented = false);
/// Dotted keys whose values differ, as "optimizer.lr: 0.0001 -> 0.0002".
[[nodiscard]] std::vector<std::string> differences(const RunConfig& from, const RunConfig& to);
/// Keys that were set away from their defaults but do nothing in this run, one sentence each.
[[nodiscard]] std::vector<std::string> notes(const RunConfig& config);

/// Optimizer steps of the whole run: train.steps, or with train.epochs ceil(epochs x samples / global_batch), `samples`
/// being those of all prefixes of data.train, and the part of a batch that data.general takes not counted. With
/// data.weights an epoch is as many samples, of each prefix its share.
[[nodiscard]] std::int64_t total_steps(const RunConfig& config, std::int64_t samples);

}  // namespace reprise
