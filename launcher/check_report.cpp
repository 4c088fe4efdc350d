#include "launcher/check_report.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/strict_json.hpp"
#include "launcher/gpu.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/loss_targets.hpp"
#include "launcher/machine_info.hpp"
#include "launcher/peft_adapter.hpp"
#include "launcher/progress.hpp"
#include "launcher/run_layout.hpp"
#include "launcher/step_shape.hpp"
#include "launcher/store_provenance.hpp"
#include "launcher/tokenizer_info.hpp"
#include "launcher/training_data.hpp"

namespace reprise {

namespace {

/// Larger inputs are not hashed by a check; the run itself does.
constexpr std::int64_t kMostHashedBytes = std::int64_t{4} << 30;
/// Ids of a set before a store tells: the median at the published setting.
constexpr std::int64_t kTypicalSet = 100;

// ---- model and layout ----------------------------------------------------------------------------------------------

void read_model(CheckReport& report, const RunConfig& config) {
  report.model = read_decoder_config(config.model.path, config.model.vocab_size);
  const WeightFiles weights(config.model.path);
  report.weight_dtype = weights.dtype();
  for (const SafetensorsReader& file : weights.files()) {
    report.weight_bytes += static_cast<std::int64_t>(std::filesystem::file_size(file.path()));
  }
  report.largest_token_id = largest_token_id(config.model.path);
  require(config.data.sequence_length <= report.model.max_position_embeddings, ErrorKind::kUsage,
          "data.sequence_length = {}: the model knows {} positions (max_position_embeddings of {})",
          config.data.sequence_length, report.model.max_position_embeddings, config.model.path);
  if (report.largest_token_id < 0) {
    report.notes.push_back("the model folder has no tokenizer.json: token ids are compared with vocab_size alone");
  } else if (report.largest_token_id >= report.model.vocab_size) {
    report.warnings.push_back(fmt::format("model.vocab_size = {} leaves out ids of the tokenizer, whose largest is {}",
                                          config.model.vocab_size, report.largest_token_id));
  }
  const std::filesystem::path config_json = std::filesystem::path(config.model.path) / "config.json";
  const std::vector<std::string> unread =
      unread_config_keys(read_text_file(config_json, ErrorKind::kUsage), config_json.string());
  if (!unread.empty()) {
    report.notes.push_back(fmt::format("config.json: {} {} of another program: not read, here as in transformers",
                                       fmt::join(unread, ", "), unread.size() == 1 ? "is a key" : "are keys"));
  }
}

// ---- data ----------------------------------------------------------------------------------------------------------

/// Whether `prepare` made the data with the tokenizer of the model.
void compare_tokenizer(CheckReport& report, const std::string& prefix, const std::string& model) {
  const std::filesystem::path facts = prefix + ".json";
  if (!std::filesystem::exists(facts)) return;
  const nlohmann::json json = read_json_object(facts, ErrorKind::kData);
  const auto found = json.find("tokenizer_sha256");
  if (found == json.end() || !found->is_string() || *found == tokenizer_fingerprint(model)) return;
  report.warnings.push_back(fmt::format("{} was made with another tokenizer than that of {} ({}): prepare it again",
                                        prefix, model, facts.string()));
}

void read_data(CheckReport& report, const RunConfig& config, const std::string& prefix, const std::string& role,
               std::uint64_t ordinal) {
  const IndexedDataset dataset(prefix, report.model.vocab_size, ordinal);
  DataReport data{.prefix = prefix,
                  .role = role,
                  .statistics = count_data(dataset, config.data.sequence_length),
                  .share = 0.0,
                  .epochs = 0.0,
                  .largest_id = -1,
                  .has_mask = dataset.has_mask(),
                  .has_weight = dataset.has_weight()};
  Progress progress("tokens of " + prefix, dataset.size(), false, 5.0);
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const Sample sample = dataset.read(d);  // throws for ids outside the vocabulary
    for (const std::int32_t id : sample.tokens) data.largest_id = std::max<std::int64_t>(data.largest_id, id);
    constexpr std::int64_t kLong = 20000;  // documents; below, it is done before a bar could be read
    if (dataset.size() > kLong) progress.update(d + 1);
  }
  if (report.largest_token_id >= 0 && data.largest_id > report.largest_token_id) {
    report.warnings.push_back(fmt::format("{} has token id {}, beyond the tokenizer's largest, {}", prefix,
                                          data.largest_id, report.largest_token_id));
  }
  compare_tokenizer(report, prefix, config.model.path);
  report.data.push_back(data);
}

/// Every prefix of the run, in the order of their ordinals.
void read_all_data(CheckReport& report, const RunConfig& config) {
  std::uint64_t ordinal = 0;
  for (const std::string& prefix : config.data.train) read_data(report, config, prefix, "train", ordinal++);
  for (const std::string& prefix : config.data.general) read_data(report, config, prefix, "general", ordinal++);
  for (const std::string& prefix : config.data.eval) read_data(report, config, prefix, "eval", ordinal++);
}

DataStatistics statistics_of(const CheckReport& report, const std::string& role) {
  std::vector<DataStatistics> parts;
  for (const DataReport& data : report.data) {
    if (data.role == role) parts.push_back(data.statistics);
  }
  return sum_of(parts);
}

/// How often the run sees each prefix.
void count_epochs(CheckReport& report, const RunConfig& config, const DataLoader& domain) {
  const double all = static_cast<double>(report.steps * config.train.global_batch);
  const double ratio = config.general_ratio();
  const DataStatistics general = statistics_of(report, "general");
  for (std::size_t i = 0; i < report.data.size(); ++i) {
    DataReport& data = report.data[i];
    const auto samples = static_cast<double>(data.statistics.samples);
    if (data.role == "train") data.share = (1.0 - ratio) * domain.order().share(i);
    if (data.role == "general") data.share = ratio * samples / static_cast<double>(general.samples);
    data.epochs = all * data.share / samples;
  }
  report.epochs = all * (1.0 - ratio) / static_cast<double>(domain.order().size());
}

// ---- store ---------------------------------------------------------------------------------------------------------

std::int64_t bytes_of(const std::string& prefix) {
  std::int64_t bytes = 0;
  for (const char* suffix : {".bin", ".idx", ".mask.bin", ".weight.bin"}) {
    std::error_code absent;
    const auto size = std::filesystem::file_size(prefix + suffix, absent);
    if (!absent) bytes += static_cast<std::int64_t>(size);
  }
  return bytes;
}

void compare_store(CheckReport& report, const RunConfig& config, const ReplayStoreReader& store) {
  StoreProvenance expected = store_settings(config);
  const std::filesystem::path cache = hash_cache_path();
  if (report.weight_bytes <= kMostHashedBytes) {
    expected["model"] =
        adapted_fingerprint(model_fingerprint(config.model.path, nullptr, cache), config.lora.adapter, nullptr, cache);
  } else {
    report.notes.push_back(
        fmt::format("the model's weights ({}) were not hashed to compare them with the store; train "
                    "does it",
                    format_bytes(report.weight_bytes)));
  }
  std::int64_t data_bytes = 0;
  for (const std::string& prefix : config.data.train) data_bytes += bytes_of(prefix);
  if (data_bytes <= kMostHashedBytes) {
    add_data_fingerprints(config.data.train, "data", nullptr, expected);
  } else {
    report.notes.push_back("the training data was not hashed to compare it with the store; train does it");
  }
  require_usable_store(store.manifest().provenance, expected, config.replay.store);
}

void read_store(CheckReport& report, const RunConfig& config, const Dataset& dataset) {
  const ReplayStoreReader store(config.replay.store);
  compare_store(report, config, store);
  const std::int64_t missing = count_missing_samples(dataset, config.data.sequence_length, store);
  require(missing == 0 || config.replay.missing == "skip", ErrorKind::kStoreMismatch,
          "{} of the {} samples of {} are not in the store {}; collect again, or set replay.missing = \"skip\"",
          missing, dataset.size(), dataset.name(), config.replay.store);
  report.store_exists = true;
  report.store = measure_store_shape(store, config);
  report.store_bytes = report.store_largest_bytes = store.manifest().bytes();
}

void estimate_store(CheckReport& report, const RunConfig& config, const Dataset& dataset) {
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const std::int64_t targets = dataset.count_targets(d, config.data.sequence_length + 1);
    report.store.positions += config.replay.budget > 0 ? std::min(targets, config.replay.budget) : targets;
  }
  const std::int64_t typical = config.replay.tau >= 1.0
                                   ? config.replay.k_max
                                   : std::clamp(kTypicalSet, config.replay.k_min, config.replay.k_max);
  const auto bytes = [&](std::int64_t ids) {
    return store_disk_bytes({report.store.positions, ids * report.store.positions}, config.replay.log_probs);
  };
  report.store.ids = typical * report.store.positions;
  report.store_bytes = bytes(typical);
  report.store_largest_bytes = bytes(config.replay.k_max);
}

void look_at_store(CheckReport& report, const RunConfig& config, const Dataset& dataset) {
  if (config.replay.store.empty()) return;
  const std::filesystem::path folder = config.replay.store;
  if (std::filesystem::exists(folder / "manifest.json")) {
    read_store(report, config, dataset);
    return;
  }
  if (config.normalization() == Normalization::kFull) {
    report.warnings.push_back(
        fmt::format("replay.store = \"{}\" does not exist; train wants it, or replay.store = \"\" to "
                    "train every target",
                    config.replay.store));
  } else if (std::filesystem::exists(folder)) {
    report.notes.push_back(
        fmt::format("{}: the collection is not finished; `reprise collect` goes on", folder.string()));
  }
  estimate_store(report, config, dataset);
}

// ---- disk and what is worth saying ---------------------------------------------------------------------------------

void look_at_disk(CheckReport& report, const RunConfig& config, const RunShape& run) {
  const auto add = [&](const std::string& key, const std::string& path, std::int64_t needed) {
    const FileSystemInfo info = read_file_system(path);
    report.disk.push_back({key, path, info.type, needed, info.free_bytes});
    require(info.writable, ErrorKind::kDisk,
            "{} = \"{}\": cannot write to {}; change its permissions or name another "
            "folder",
            key, path, info.existing.string());
    if (needed > info.free_bytes) {
      report.warnings.push_back(fmt::format("{} = \"{}\" needs about {}, but only {} are free there", key, path,
                                            format_bytes(needed), format_bytes(info.free_bytes)));
    }
  };
  if (!config.replay.store.empty() && !report.store_exists) {
    add("replay.store", config.replay.store, report.store_bytes);
  }
  // The newest, the best, and the one that is being written.
  add("run.folder", config.run.folder, (config.train.keep + 2) * run.checkpoint_bytes());
}

void add_notes(CheckReport& report, const RunConfig& config) {
  const std::vector<std::string> idle = notes(config);
  report.notes.insert(report.notes.end(), idle.begin(), idle.end());
  const DataStatistics train = statistics_of(report, "train");
  if (train.without_targets > 0) {
    report.notes.push_back(
        fmt::format("{} of {} training samples have no target: they take their place in a batch and "
                    "train nothing",
                    format_count(train.without_targets), format_count(train.samples)));
  }
  if (config.schedule.warmup_steps >= report.steps) {
    report.warnings.push_back(
        fmt::format("schedule.warmup_steps = {} is not below the run's {} steps: optimizer.lr is "
                    "hardly reached",
                    config.schedule.warmup_steps, report.steps));
  }
  if (config.replay.k_max > report.model.vocab_size) {
    report.notes.push_back(
        fmt::format("replay.k_max = {} exceeds the vocabulary of {}", config.replay.k_max, report.model.vocab_size));
  }
  const std::int64_t share = config.train.global_batch / report.data_size;
  if (config.train.micro_batch > share && !config.data.pack) {
    report.notes.push_back(
        fmt::format("train.micro_batch = {} exceeds a rank's {} samples of a step", config.train.micro_batch, share));
  }
  const MachineInfo machine = read_machine_info();
  if (report.memory.total() > machine.memory_bytes) {
    report.warnings.push_back(fmt::format("a rank needs about {}, this machine has {}",
                                          format_bytes(report.memory.total()), format_bytes(machine.memory_bytes)));
  }
}

/// What a rank of the run would compute on if all of them were started here.
RankDevice foreseen_device(const RunConfig& config, std::int64_t world_size) {
  const std::string& device = config.parallel.device;
  const bool gpu = device == "cuda" || (device == "auto" && !visible_gpus().empty());
  const std::int64_t threads = std::max<std::int64_t>(1, std::ssize(affinity_cores()) / world_size);
  return {.gpu = gpu, .threads = static_cast<int>(threads)};
}

}  // namespace

CheckReport make_check_report(const RunConfig& config, std::int64_t world_size) {
  CheckReport report;
  report.world_size = world_size;
  report.tensor_size = config.parallel.tensor;
  read_model(report, config);
  check_layout(report.model, config, world_size);
  report.data_size = world_size / report.tensor_size;
  const RunShape run(report.model, config, world_size);
  check_weights(WeightFiles(config.model.path), config.model.path, report.model.tie_word_embeddings, run.base);

  read_all_data(report, config);
  const JoinedDataset dataset(config.data.train, report.model.vocab_size);
  report.steps = total_steps(config, dataset.size());
  const DataLoader domain = make_domain_loader(dataset, config, 0, static_cast<int>(report.data_size));
  count_epochs(report, config, domain);
  report.step = measure_step_shape(config, report.model.vocab_size, report.data_size, report.steps);
  look_at_store(report, config, dataset);
  report.parameters = run.parameters;
  report.memory = estimate_memory(run, report.step, report.store, foreseen_device(config, world_size));
  report.wire = estimate_wire(run, report.step);
  look_at_disk(report, config, run);
  add_notes(report, config);
  return report;
}

}  // namespace reprise
