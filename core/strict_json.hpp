#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace reprise {

/// Parses one JSON value. Throws Error(kind) naming `what` for bad syntax, bad UTF-8, a repeated key or more than 64
/// levels. (The library alone keeps the last of two equal keys without a word.)
[[nodiscard]] nlohmann::json parse_strict_json(std::string_view text, const std::string& what, ErrorKind kind);
/// The same, keeping the order of keys for writing the value back.
[[nodiscard]] nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& what, ErrorKind kind);
/// Reads and parses a file that must hold an object.
[[nodiscard]] nlohmann::json read_json_object(const std::filesystem::path& path, ErrorKind kind);

}  // namespace reprise
