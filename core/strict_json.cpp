#include "core/strict_json.hpp"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "core/file_io.hpp"

namespace reprise {

namespace {

constexpr int kMaxDepth = 64;

template <class Json>
Json parse(std::string_view text, const std::string& what, ErrorKind kind) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto on_event = [&](int depth, typename Json::parse_event_t event, Json& value) {
    require(depth <= kMaxDepth, kind, "{}: more than {} levels of JSON", what, kMaxDepth);
    switch (event) {
      case Json::parse_event_t::object_start: keys.emplace_back(); break;
      case Json::parse_event_t::object_end: keys.pop_back(); break;
      case Json::parse_event_t::key: {
        const auto& key = value.template get_ref<const std::string&>();
        require(keys.back().insert(key).second, kind, "{}: key \"{}\" appears twice in one object", what, key);
        break;
      }
      default: break;
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), on_event);
  } catch (const nlohmann::json::exception& error) {
    fail(kind, "{}: not valid JSON: {}", what, error.what());
  }
}

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, const std::string& what, ErrorKind kind) {
  return parse<nlohmann::json>(text, what, kind);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& what, ErrorKind kind) {
  return parse<nlohmann::ordered_json>(text, what, kind);
}

nlohmann::json read_json_object(const std::filesystem::path& path, ErrorKind kind) {
  nlohmann::json value = parse_strict_json(read_text_file(path, kind), path.string(), kind);
  require(value.is_object(), kind, "{}: must hold a JSON object, not {}", path.string(), value.type_name());
  return value;
}

}  // namespace reprise
