#include "launcher/store_provenance.hpp"

#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cstdlib>

#include "core/error.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/peft_adapter.hpp"
#include "launcher/tokenizer_info.hpp"

namespace reprise {

namespace {

std::string number(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

/// What the reader of a message calls the key.
std::string label_of(const std::string& key) {
  if (key == "model") return "model (weights, config.json and adapter)";
  if (key == "tokenizer") return "tokenizer";
  if (key == "data") return "data (tokens and masks)";
  if (key.starts_with("data.")) return fmt::format("data (tokens and masks) of prefix {} of data.train", key.substr(5));
  if (key == "template") return "chat template";
  if (key == "vocab_size") return "vocab_size";
  if (key == "sequence_length" || key == "seed") return "data." + key;
  return "replay." + key;
}

}  // namespace

StoreProvenance store_settings(const RunConfig& config) {
  StoreProvenance provenance;
  provenance["tokenizer"] = tokenizer_fingerprint(config.model.path);
  provenance["template"] = template_fingerprint(config.model.path);
  provenance["vocab_size"] = std::to_string(read_decoder_config(config.model.path, config.model.vocab_size).vocab_size);
  provenance["tau"] = number(config.replay.tau);
  provenance["k_max"] = std::to_string(config.replay.k_max);
  provenance["k_min"] = std::to_string(config.replay.k_min);
  provenance["positions"] = config.replay.positions;
  provenance["budget"] = std::to_string(config.replay.budget);
  provenance["seed"] = std::to_string(config.data.seed);
  provenance["sequence_length"] = std::to_string(config.data.sequence_length);
  provenance["log_probs"] = config.replay.log_probs ? "true" : "false";
  provenance["dtype"] = config.model.dtype;
  return provenance;
}

StoreProvenance store_provenance(const RunConfig& config, Communicator* world) {
  const std::filesystem::path cache = hash_cache_path();
  StoreProvenance provenance = store_settings(config);
  provenance["model"] =
      adapted_fingerprint(model_fingerprint(config.model.path, world, cache), config.lora.adapter, world, cache);
  add_data_fingerprints(config.data.train, "data", world, provenance);
  return provenance;
}

void add_data_fingerprints(const std::vector<std::string>& prefixes, const std::string& key, Communicator* world,
                           StoreProvenance& provenance) {
  const std::filesystem::path cache = hash_cache_path();
  for (std::size_t p = 0; p < prefixes.size(); ++p) {
    provenance[p == 0 ? key : fmt::format("{}.{}", key, p)] = dataset_fingerprint(prefixes[p], world, cache);
  }
}

void require_usable_store(const StoreProvenance& actual, const StoreProvenance& expected, const std::string& name) {
  std::vector<std::string> lines;
  for (const auto& [key, wanted] : expected) {
    if (key == "dtype" || key == "log_probs") continue;
    const auto found = actual.find(key);
    const std::string held = found == actual.end() ? "absent" : found->second;
    if (held == wanted) continue;
    if (key == "sequence_length" && std::atoll(held.c_str()) >= std::atoll(wanted.c_str())) continue;
    constexpr std::size_t kShown = 16;  // of a hash
    lines.push_back(fmt::format("{}: the store has {}, this run {}", label_of(key), held.substr(0, kShown),
                                wanted.substr(0, kShown)));
  }
  require(
      lines.empty(), ErrorKind::kStoreMismatch,
      "{}: this store was collected from something else\n{}\ncollect again (`reprise collect`), or name the store and "
      "the settings that belong together",
      name, fmt::join(lines, "\n"));
}

void require_usable_store(const ReplayStoreReader& store, const StoreProvenance& expected) {
  require_usable_store(store.manifest().provenance, expected, "replay.store");
}

std::filesystem::path hash_cache_path() {
  const auto folder_of = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr || *value == '\0' ? std::filesystem::path() : std::filesystem::path(value);
  };
  std::filesystem::path base = folder_of("XDG_CACHE_HOME");
  if (base.empty() && !folder_of("HOME").empty()) base = folder_of("HOME") / ".cache";
  if (base.empty()) return {};
  std::error_code ignored;  // a cache that cannot be written costs time, never an error
  std::filesystem::create_directories(base / "reprise", ignored);
  return base / "reprise" / "hashes.json";
}

}  // namespace reprise
