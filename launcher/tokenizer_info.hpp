#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace reprise {

/// What the core needs to know of a tokenizer; texts are the Python side's business.
struct TokenizerInfo {
  std::vector<std::int32_t> eos_ids;  ///< sorted; generation stops at any of them
  std::int32_t bos_id = -1;           ///< -1 = none
  std::int32_t pad_id = -1;
};

/// eos_token_id (an id or a list), bos_token_id and pad_token_id of generation_config.json, else of config.json; ids
/// must lie in [0, vocab_size) of config.json, or be -1 for "none".
/// Throws Error(kUsage) naming file, key and value.
[[nodiscard]] TokenizerInfo read_tokenizer_info(const std::filesystem::path& folder);

/// Largest id in tokenizer.json, added tokens (also those of tokenizer_config.json) included; -1 without the file.
/// Throws Error(kUsage). Reads the whole file (some 10 MB).
[[nodiscard]] std::int64_t largest_token_id(const std::filesystem::path& folder);

/// SHA-256 (hex) of tokenizer.json, else of tokenizer.model, else of vocab.json and merges.txt; "none" without any.
[[nodiscard]] std::string tokenizer_fingerprint(const std::filesystem::path& folder);
/// SHA-256 (hex) of the chat template: chat_template.jinja, else `chat_template` of tokenizer_config.json; "none"
/// without any.
[[nodiscard]] std::string template_fingerprint(const std::filesystem::path& folder);

}  // namespace reprise
