#include "launcher/json_lines.hpp"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/strict_json.hpp"

namespace reprise {

void read_json_lines(const std::filesystem::path& path,
                     const std::function<void(const nlohmann::json& line, const std::string& where)>& visit) {
  constexpr std::int64_t kMaxBytes = std::int64_t{4} << 30;
  const std::string text = read_text_file(path, ErrorKind::kData, kMaxBytes);
  std::size_t begin = 0;
  for (std::int64_t number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    const nlohmann::json value = parse_strict_json(line, where, ErrorKind::kData);
    require(value.is_object(), ErrorKind::kData, "{}: must be a JSON object", where);
    visit(value, where);
  }
}

void require_known_keys(const nlohmann::json& line, const std::vector<std::string>& known, const std::string& where) {
  for (const auto& [key, value] : line.items()) {
    require(std::find(known.begin(), known.end(), key) != known.end(), ErrorKind::kData,
            "{}: unknown key \"{}\"; known are \"{}\"", where, key, fmt::join(known, "\", \""));
  }
}

std::vector<std::int32_t> ids_of(const nlohmann::json& value, const std::string& what, std::int64_t vocab_size,
                                 const std::string& where) {
  require(value.is_array() && !value.empty(), ErrorKind::kData,
          "{}: {} must be a list of at least one token id (the program knows no text; `python -m reprise` makes ids)",
          where, what);
  std::vector<std::int32_t> ids;
  for (const nlohmann::json& id : value) {
    const bool fits = id.is_number_unsigned() && id.get<std::uint64_t>() < static_cast<std::uint64_t>(vocab_size);
    require(fits, ErrorKind::kData, "{}: {} holds {}; ids must lie in [0, {})", where, what, id.dump().substr(0, 40),
            vocab_size);
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

}  // namespace reprise
