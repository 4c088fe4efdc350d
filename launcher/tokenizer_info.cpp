#include "launcher/tokenizer_info.hpp"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/file_io.hpp"
#include "core/sha256.hpp"
#include "core/strict_json.hpp"

namespace reprise {

namespace {

using nlohmann::json;

/// The ids under a key: none for null, an absent key and -1, which old folders write for "none".
std::vector<std::int32_t> read_ids(const json& object, const std::filesystem::path& path, const std::string& key,
                                   std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  if (!object.contains(key) || object[key].is_null()) return ids;
  const json list = object[key].is_array() ? object[key] : json::array({object[key]});
  for (const json& id : list) {
    if (id.is_number_integer() && id == -1) continue;
    const bool fits = id.is_number_unsigned() && id.get<std::uint64_t>() < static_cast<std::uint64_t>(vocab_size);
    require(fits, ErrorKind::kUsage, "{}: {} = {}: must be an id (or a list of ids) in [0, {})", path.string(), key,
            object[key].dump(), vocab_size);
    ids.push_back(id.get<std::int32_t>());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::int64_t read_vocab_size(const json& config, const std::filesystem::path& path) {
  const bool fits = config.contains("vocab_size") && config["vocab_size"].is_number_unsigned() &&
                    config["vocab_size"].get<std::uint64_t>() <= std::uint64_t{1} << 31;
  require(fits, ErrorKind::kUsage, "{}: vocab_size must be an integer", path.string());
  return config["vocab_size"].get<std::int64_t>();
}

std::int64_t id_of(const json& value, const std::filesystem::path& path) {
  require(value.is_number_unsigned() && value.get<std::uint64_t>() < std::uint64_t{1} << 31, ErrorKind::kUsage,
          "{}: token id {} is not one", path.string(), value.dump().substr(0, 100));
  return value.get<std::int64_t>();
}

/// Tokens that transformers adds when it loads the tokenizer: the keys of added_tokens_decoder.
std::int64_t largest_added_id(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return -1;
  const json config = read_json_object(path, ErrorKind::kUsage);
  if (!config.contains("added_tokens_decoder") || !config["added_tokens_decoder"].is_object()) return -1;
  std::int64_t largest = -1;
  for (const auto& [id, token] : config["added_tokens_decoder"].items()) {
    std::int64_t value = -1;
    const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), value);
    require(error == std::errc() && end == id.data() + id.size() && 0 <= value && value < std::int64_t{1} << 31,
            ErrorKind::kUsage, "{}: added_tokens_decoder: token id \"{}\" is not one", path.string(),
            id.substr(0, 100));
    largest = std::max(largest, value);
  }
  return largest;
}

}  // namespace

TokenizerInfo read_tokenizer_info(const std::filesystem::path& folder) {
  const std::filesystem::path config_path = folder / "config.json", generation_path = folder / "generation_config.json";
  const json config = read_json_object(config_path, ErrorKind::kUsage);
  const std::int64_t vocab_size = read_vocab_size(config, config_path);
  const bool has_generation = std::filesystem::exists(generation_path);
  const json generation = has_generation ? read_json_object(generation_path, ErrorKind::kUsage) : json::object();

  const auto ids = [&](const std::string& key) {
    std::vector<std::int32_t> found = read_ids(generation, generation_path, key, vocab_size);
    return found.empty() ? read_ids(config, config_path, key, vocab_size) : found;
  };
  const auto first = [&](const std::string& key) {
    const std::vector<std::int32_t> found = ids(key);
    return found.empty() ? -1 : found.front();
  };
  return {ids("eos_token_id"), first("bos_token_id"), first("pad_token_id")};
}

std::int64_t largest_token_id(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::exists(path)) return -1;
  const std::string text = read_text_file(path, ErrorKind::kUsage, std::int64_t{256} << 20);
  const json tokenizer = parse_strict_json(text, path.string(), ErrorKind::kUsage);
  require(tokenizer.is_object() && tokenizer.contains("model") && tokenizer["model"].is_object(), ErrorKind::kUsage,
          "{}: no \"model\" inside", path.string());
  std::int64_t largest = largest_added_id(folder);
  if (tokenizer["model"].contains("vocab")) {
    const json& vocab = tokenizer["model"]["vocab"];
    if (vocab.is_array()) {  // Unigram: the index is the id
      largest = static_cast<std::int64_t>(vocab.size()) - 1;
    } else {
      for (const auto& [token, id] : vocab.items()) largest = std::max(largest, id_of(id, path));
    }
  }
  if (tokenizer.contains("added_tokens") && tokenizer["added_tokens"].is_array()) {
    for (const json& token : tokenizer["added_tokens"]) {
      if (token.is_object() && token.contains("id")) largest = std::max(largest, id_of(token["id"], path));
    }
  }
  return largest;
}

std::string tokenizer_fingerprint(const std::filesystem::path& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (std::filesystem::exists(folder / name)) return sha256_file(folder / name, ErrorKind::kUsage);
  }
  if (!std::filesystem::exists(folder / "vocab.json") || !std::filesystem::exists(folder / "merges.txt")) return "none";
  return sha256_hex(sha256_file(folder / "vocab.json", ErrorKind::kUsage) +
                    sha256_file(folder / "merges.txt", ErrorKind::kUsage));
}

std::string template_fingerprint(const std::filesystem::path& folder) {
  const std::filesystem::path jinja = folder / "chat_template.jinja", config_path = folder / "tokenizer_config.json";
  if (std::filesystem::exists(jinja)) return sha256_file(jinja, ErrorKind::kUsage);
  if (!std::filesystem::exists(config_path)) return "none";
  const json config = read_json_object(config_path, ErrorKind::kUsage);
  if (!config.contains("chat_template") || config["chat_template"].is_null()) return "none";
  const json& value = config["chat_template"];  // a text, or a list of named texts
  return sha256_hex(value.is_string() ? value.get<std::string>() : value.dump());
}

}  // namespace reprise
