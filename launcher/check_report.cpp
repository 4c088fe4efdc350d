#include "launcher/check_report.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/strict_json.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/loss_targets.hpp"
#include "launcher/machine_info.hpp"
#include "launcher/progress.hpp"
#include "launcher/store_provenance.hpp"
#include "launcher/tokenizer_info.hpp"

namespace reprise {

namespace {

/// Larger inputs are not hashed by a check; the run itself does.
constexpr std::int64_t kMostHashedBytes = std::int64_t{4} << 30;
/// Ids of a set before a store tells: the median at the published setting.
constexpr std::int64_t kTypicalSet = 100;

// ---- model and layout ----------------------------------------------------------------------------------------------

void check_layout(const CheckReport& report, const RunConfig& config) {
  const DecoderConfig& model = report.model;
  const std::int64_t tensor = config.parallel.tensor;
  std::vector<std::string> problems;
  const auto must_divide = [&](std::int64_t divisor, std::int64_t value, const std::string& divisor_name,
                               const std::string& value_name) {
    if (value % divisor == 0) return;
    problems.push_back(fmt::format("{} = {} does not divide {} = {}", divisor_name, divisor, value_name, value));
  };
  must_divide(tensor, report.world_size, "parallel.tensor", "the number of ranks");
  must_divide(tensor, model.num_heads, "parallel.tensor", "num_attention_heads");
  must_divide(tensor, model.ffn_hidden_size, "parallel.tensor", "intermediate_size");
  if (model.num_kv_heads % tensor != 0 && tensor % model.num_kv_heads != 0) {
    problems.push_back(
        fmt::format("parallel.tensor = {} neither divides num_key_value_heads = {} nor is a multiple of it", tensor,
                    model.num_kv_heads));
  }
  if (report.world_size % tensor == 0) {
    must_divide(report.world_size / tensor, config.train.global_batch,
                fmt::format("data = {} ranks / tensor {}", report.world_size, tensor), "train.global_batch");
  }
  if (problems.empty()) return;
  std::vector<std::int64_t> legal;
  for (std::int64_t n = 1; n <= report.world_size; ++n) {
    const bool fits = report.world_size % n == 0 && model.num_heads % n == 0 && model.ffn_hidden_size % n == 0 &&
                      (model.num_kv_heads % n == 0 || n % model.num_kv_heads == 0) &&
                      config.train.global_batch % (report.world_size / n) == 0;
    if (fits) legal.push_back(n);
  }
  fail(ErrorKind::kUsage, "{} ranks do not fit this run\n{}\n{}", report.world_size, fmt::join(problems, "\n"),
       legal.empty() ? "no value of parallel.tensor fits: change the number of ranks or train.global_batch"
                     : fmt::format("parallel.tensor that fit: {}", fmt::join(legal, ", ")));
}

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

/// Mean and largest micro-batch of some steps, by the loader that the run uses.
StepShape measure_steps(const CheckReport& report, const RunConfig& config, const IndexedDataset& dataset) {
  constexpr std::int64_t kMeasuredSteps = 8;
  DataLoaderOptions options;
  options.sequence_length = config.data.sequence_length;
  options.global_batch = config.train.global_batch;
  options.micro_batch = config.train.micro_batch;
  options.pack = config.data.pack;
  options.shuffle = config.data.shuffle;
  options.seed = static_cast<std::uint64_t>(config.data.seed);
  options.dp_size = static_cast<int>(report.data_size);
  const DataLoader loader(dataset, options);
  StepShape shape;
  double micro_batches = 0.0, tokens = 0.0, targets = 0.0;
  const std::int64_t steps = std::min(report.steps, kMeasuredSteps);
  for (std::int64_t i = 0; i < steps; ++i) {
    const auto plan = loader.plan((report.steps - 1) * i / std::max<std::int64_t>(1, steps - 1) * options.global_batch);
    micro_batches += static_cast<double>(plan.size());
    for (const auto& documents : plan.documents) {
      std::int64_t batch_tokens = 0, batch_targets = 0;
      for (const std::int64_t document : documents) {
        batch_tokens += std::min(dataset.length(document) - 1, options.sequence_length);
        batch_targets += dataset.count_targets(document, options.sequence_length + 1);
      }
      tokens += static_cast<double>(batch_tokens);
      targets += static_cast<double>(batch_targets);
      shape.max_tokens = std::max(shape.max_tokens, batch_tokens);
      shape.max_targets = std::max(shape.max_targets, batch_targets);
    }
  }
  shape.micro_batches = micro_batches / static_cast<double>(steps);
  shape.tokens = micro_batches > 0.0 ? tokens / micro_batches : 0.0;
  shape.targets = micro_batches > 0.0 ? targets / micro_batches : 0.0;
  // A step that was not looked at may hold the longest sample in every row.
  const DataStatistics& statistics = report.data.front().statistics;
  const std::int64_t longest = std::min(statistics.longest - 1, options.sequence_length);
  const std::int64_t worst = config.train.micro_batch * (config.data.pack ? options.sequence_length : longest);
  const double share = static_cast<double>(statistics.targets) / static_cast<double>(statistics.tokens);
  shape.max_tokens = std::max(shape.max_tokens, worst);
  shape.max_targets = std::max(shape.max_targets, static_cast<std::int64_t>(share * static_cast<double>(worst)));
  return shape;
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
    expected["model"] = model_fingerprint(config.model.path, nullptr, cache);
  } else {
    report.notes.push_back(
        fmt::format("the model's weights ({}) were not hashed to compare them with the store; train "
                    "does it",
                    format_bytes(report.weight_bytes)));
  }
  if (bytes_of(config.data.train) <= kMostHashedBytes) {
    expected["data"] = dataset_fingerprint(config.data.train, nullptr, cache);
  } else {
    report.notes.push_back("the training data was not hashed to compare it with the store; train does it");
  }
  require_usable_store(store.manifest().provenance, expected, config.replay.store);
}

void read_store(CheckReport& report, const RunConfig& config, const IndexedDataset& dataset) {
  const ReplayStoreReader store(config.replay.store);
  compare_store(report, config, store);
  const std::int64_t missing = count_missing_samples(dataset, config.data.sequence_length, store);
  require(missing == 0 || config.replay.missing == "skip", ErrorKind::kStoreMismatch,
          "{} of the {} samples of {} are not in the store {}; collect again, or set replay.missing = \"skip\"",
          missing, dataset.size(), config.data.train, config.replay.store);
  report.store_exists = true;
  report.store_positions = store.manifest().tokens();
  report.store_ids = store.manifest().ids();
  report.store_bytes = report.store_largest_bytes = store.manifest().bytes();
}

void estimate_store(CheckReport& report, const RunConfig& config, const IndexedDataset& dataset) {
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const std::int64_t targets = dataset.count_targets(d, config.data.sequence_length + 1);
    report.store_positions += config.replay.budget > 0 ? std::min(targets, config.replay.budget) : targets;
  }
  const std::int64_t typical = config.replay.tau >= 1.0
                                   ? config.replay.k_max
                                   : std::clamp(kTypicalSet, config.replay.k_min, config.replay.k_max);
  const auto bytes = [&](std::int64_t ids) {
    return store_disk_bytes(report.store_positions, ids * report.store_positions, config.replay.log_probs);
  };
  report.store_ids = typical * report.store_positions;
  report.store_bytes = bytes(typical);
  report.store_largest_bytes = bytes(config.replay.k_max);
}

void look_at_store(CheckReport& report, const RunConfig& config, const IndexedDataset& dataset) {
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

void look_at_disk(CheckReport& report, const RunConfig& config, const RunEstimate& estimate) {
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
  add("run.folder", config.run.folder, (config.train.keep + 2) * estimate.checkpoint_bytes());
}

void add_notes(CheckReport& report, const RunConfig& config) {
  const std::vector<std::string> idle = notes(config);
  report.notes.insert(report.notes.end(), idle.begin(), idle.end());
  const DataStatistics& train = report.data.front().statistics;
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

}  // namespace

CheckReport make_check_report(const RunConfig& config, std::int64_t world_size) {
  CheckReport report;
  report.world_size = world_size;
  report.tensor_size = config.parallel.tensor;
  read_model(report, config);
  check_layout(report, config);
  report.data_size = world_size / report.tensor_size;
  const RunEstimate estimate(report.model, config, world_size);
  check_weights(WeightFiles(config.model.path), config.model.path, report.model.tie_word_embeddings, estimate.specs());

  read_data(report, config, config.data.train, "train", 0);
  std::uint64_t ordinal = 1;
  for (const std::string& prefix : config.data.eval) read_data(report, config, prefix, "eval", ordinal++);
  const std::int64_t samples = report.data.front().statistics.samples;
  report.steps = total_steps(config, samples);
  report.epochs = static_cast<double>(report.steps * config.train.global_batch) /
                  static_cast<double>(std::max<std::int64_t>(1, samples));

  const IndexedDataset dataset(config.data.train, report.model.vocab_size);
  report.step = measure_steps(report, config, dataset);
  look_at_store(report, config, dataset);
  report.parameters = estimate.parameters();
  report.memory = estimate.memory(report.step, config.replay.store.empty() ? 0 : report.store_positions,
                                  config.replay.store.empty() ? 0 : report.store_ids);
  report.wire = estimate.wire(report.step);
  look_at_disk(report, config, estimate);
  add_notes(report, config);
  return report;
}

}  // namespace reprise
