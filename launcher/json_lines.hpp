#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace reprise {

// Files of one JSON object a line, as people and scripts write them. All of these throw Error(kData) that begins with
// "file:line".

/// Calls visit(object, "file:line") for every line that is not blank.
void read_json_lines(const std::filesystem::path& path,
                     const std::function<void(const nlohmann::json& line, const std::string& where)>& visit);

/// Refuses keys that are not among `known`: a misspelt one would be ignored without a word.
void require_known_keys(const nlohmann::json& line, const std::vector<std::string>& known, const std::string& where);

/// The ids under `what`, at least one, each in [0, vocab_size).
[[nodiscard]] std::vector<std::int32_t> ids_of(const nlohmann::json& value, const std::string& what,
                                               std::int64_t vocab_size, const std::string& where);

}  // namespace reprise
