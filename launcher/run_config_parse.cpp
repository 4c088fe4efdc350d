#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/file_io.hpp"
#include "launcher/edit_distance.hpp"
#include "launcher/run_config_fields.hpp"

namespace reprise {

namespace {

constexpr std::size_t kMaxProblems = 10;

const Field* find_field(std::string_view section, std::string_view key) {
  for (const Field& field : run_config_fields()) {
    if (field.section == section && field.key == key) return &field;
  }
  return nullptr;
}

bool is_section(std::string_view name) {
  const auto fields = run_config_fields();
  return std::any_of(fields.begin(), fields.end(), [&](const Field& field) { return field.section == name; });
}

/// "; did you mean ...?" for the nearest key, where a key of that very name in another section is nearest of all.
std::string suggestion(std::string_view section, std::string_view key) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, key.size() / 2) + 1;
  for (const Field& field : run_config_fields()) {
    std::size_t distance = edit_distance(key, field.key);
    if (distance > 0 && field.section != section) distance += 1;
    if (distance >= best_distance) continue;
    best_distance = distance;
    best = field.name();
  }
  return best.empty() ? "" : fmt::format("; did you mean \"{}\"?", best);
}

/// For a name outside all sections: a key that lacks its section, else the nearest section.
std::string section_suggestion(std::string_view name) {
  std::string best;
  std::size_t best_distance = 4;
  for (const Field& field : run_config_fields()) {
    if (field.key == name) return fmt::format("; did you mean \"{}\"?", field.name());
    const std::size_t distance = edit_distance(name, field.section);
    if (distance >= best_distance) continue;
    best_distance = distance;
    best = field.section;
  }
  return best.empty() ? "" : fmt::format("; did you mean [{}]?", best);
}

std::string keys_of(std::string_view section) {
  std::vector<std::string_view> keys;
  for (const Field& field : run_config_fields()) {
    if (field.section == section) keys.push_back(field.key);
  }
  return fmt::format("{}", fmt::join(keys, ", "));
}

std::string type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table: return "a table";
    case toml::node_type::array: return "a list";
    case toml::node_type::string: return "a string";
    case toml::node_type::integer: return "an integer";
    case toml::node_type::floating_point: return "a float";
    case toml::node_type::boolean: return "a boolean";
    default: return "a date or time";
  }
}

/// Stores the node's value; empty, or what it should have been.
std::string assign(bool& target, const toml::node& node) {
  if (!node.is_boolean()) return "true or false";
  target = node.as_boolean()->get();
  return "";
}
std::string assign(std::int64_t& target, const toml::node& node) {
  if (node.is_integer()) {
    target = node.as_integer()->get();
    return "";
  }
  if (node.is_floating_point()) {
    const double value = node.as_floating_point()->get();
    const bool exact = std::abs(value) < 1e15 && value == std::floor(value);
    if (exact) return fmt::format("an integer (write {})", static_cast<std::int64_t>(value));
  }
  return "an integer";
}
std::string assign(double& target, const toml::node& node) {
  if (!node.is_number()) return "a number";
  target = *node.value<double>();
  return "";
}
std::string assign(std::string& target, const toml::node& node) {
  if (!node.is_string()) return "a string (in quotes)";
  target = node.as_string()->get();
  return "";
}
template <class T>
std::string assign(std::vector<T>& target, const toml::node& node) {
  const std::string expected = std::is_same_v<T, std::string> ? "a string or a list of strings, [\"a\", \"b\"]"
                                                              : "a list of numbers, [0.9, 0.95]";
  std::vector<T> values;
  if (std::is_same_v<T, std::string> && node.is_string()) {
    (void)assign(values.emplace_back(), node);
    target = std::move(values);
    return "";
  }
  if (!node.is_array()) return expected;
  for (const toml::node& element : *node.as_array()) {
    if (!assign(values.emplace_back(), element).empty()) return expected;
  }
  target = std::move(values);
  return "";
}

/// Collects the problems of a run file and its overrides, so that one start names them all.
class Reader {
 public:
  explicit Reader(RunConfig& config) : config_(config) {}

  void read_text(std::string_view text, const std::string& name) {
    name_ = name;
    toml::table table;
    try {
      table = toml::parse(text, name);
    } catch (const toml::parse_error& error) {
      const auto& begin = error.source().begin;
      fail(ErrorKind::kUsage, "{}:{}:{}: {}", name, begin.line, begin.column, error.description());
    }
    for (const auto& [key, node] : table) read_section(key, node);
  }

  void read_override(const std::string& text) {
    const std::string where = fmt::format("override \"{}\"", text);
    const std::size_t equals = text.find('=');
    require(equals != std::string::npos && equals > 0, ErrorKind::kUsage,
            "{}: must be section.key=value, e.g. optimizer.lr=2e-5", where);
    const std::string name = text.substr(0, equals);
    const std::size_t dot = name.find('.');
    const std::string section = dot == std::string::npos ? "" : name.substr(0, dot);
    const std::string key = dot == std::string::npos ? name : name.substr(dot + 1);
    const Field* field = find_field(section, key);
    if (field == nullptr) {
      report(where, fmt::format("unknown key \"{}\"{}", name, suggestion(section, key)));
      return;
    }
    const std::string value = override_to_toml(*field, text.substr(equals + 1));
    try {
      const toml::table table = toml::parse("value = " + value, where);
      const bool alone = table.size() == 1 && table.contains("value");
      if (!alone) report(where, "one value is expected behind the =");
      if (alone) read_value(*field, *table.get("value"), where);
    } catch (const toml::parse_error& error) {
      report(where, std::string(error.description()));
    }
  }

  /// Throws when anything was wrong.
  void finish() {
    check_ranges();
    if (problems_.empty()) check_combinations();
    if (problems_.empty()) return;
    const std::size_t more = problems_.size() - std::min(problems_.size(), kMaxProblems);
    if (more > 0) problems_.resize(kMaxProblems);
    std::string text = fmt::format("{}", fmt::join(problems_, "\n"));
    if (more > 0) text += fmt::format("\nand {} more", more);
    throw Error(ErrorKind::kUsage, text);
  }

 private:
  [[nodiscard]] std::string where_of(const toml::source_region& source) const {
    return fmt::format("{}:{}:{}", name_, source.begin.line, source.begin.column);
  }
  /// Where a key was last set.
  [[nodiscard]] std::string where_of(const std::string& key) const {
    const auto found = where_.find(key);
    return found == where_.end() ? name_ : found->second;
  }
  void report(const std::string& where, const std::string& what) { problems_.push_back(where + ": " + what); }

  void read_section(const toml::key& name, const toml::node& node) {
    const std::string where = where_of(name.source());
    if (!is_section(name.str())) {
      const char* what = node.is_table() ? "section" : "key";
      report(where, fmt::format("unknown {} \"{}\"{}", what, name.str(), section_suggestion(name.str())));
      return;
    }
    if (!node.is_table()) {
      report(where,
             fmt::format("\"{0}\" must be a section, [{0}], with the keys {1}", name.str(), keys_of(name.str())));
      return;
    }
    for (const auto& [key, value] : *node.as_table()) {
      const std::string key_where = where_of(key.source());
      const Field* field = find_field(name.str(), key.str());
      if (field != nullptr) {
        read_value(*field, value, key_where);
      } else {
        report(key_where,
               fmt::format("unknown key \"{}.{}\"{}", name.str(), key.str(), suggestion(name.str(), key.str())));
      }
    }
  }

  void read_value(const Field& field, const toml::node& node, const std::string& where) {
    where_[field.name()] = where;
    const std::string expected = std::visit([&](auto* target) { return assign(*target, node); }, field.value(config_));
    if (!expected.empty()) {
      report(where, fmt::format("{} must be {}, not {}", field.name(), expected, type_name(node)));
    }
  }

  /// What stands behind the = of an override, as TOML: strings and lists may go without quotes and brackets.
  static std::string override_to_toml(const Field& field, const std::string& text) {
    RunConfig unused;
    const FieldValue value = field.value(unused);
    const bool quoted = text.starts_with('"') || text.starts_with('\'');
    if (std::holds_alternative<std::string*>(value)) return quoted ? text : toml_quoted(text);
    const bool is_names = std::holds_alternative<std::vector<std::string>*>(value);
    const bool is_numbers = std::holds_alternative<std::vector<double>*>(value);
    if ((!is_names && !is_numbers) || text.starts_with('[')) return text;
    if (quoted || is_numbers) return "[" + text + "]";
    std::vector<std::string> names;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      names.push_back(toml_quoted(std::string_view(text).substr(begin, end - begin)));
      begin = end + 1;
    }
    return fmt::format("[{}]", fmt::join(names, ", "));
  }

  void check_ranges() {
    for (const Field& field : run_config_fields()) {
      const FieldValue value = field.value(config_);
      if (is_legal(field, value)) continue;
      report(where_of(field.name()),
             fmt::format("{} = {}: must be {}", field.name(), to_toml_value(value), describe(field.legal)));
    }
  }

  void check_combinations() {
    check_data();
    const auto& replay = config_.replay;
    if (replay.k_min > replay.k_max) {
      report(where_of("replay.k_min"),
             fmt::format("replay.k_min = {} exceeds replay.k_max = {}", replay.k_min, replay.k_max));
    }
    if (replay.budget > 0 && replay.positions == "all") {
      report(
          where_of("replay.budget"),
          fmt::format("replay.budget = {} needs replay.positions \"random\", \"last\" or \"bucket\"; \"all\" records "
                      "every target",
                      replay.budget));
    }
    if (config_.lora.rank > 0 && config_.lora.targets.empty()) {
      report(where_of("lora.targets"), "lora.targets is empty: lora.rank > 0 needs projections, or \"all-linear\"");
    }
    if (replay.store.empty() && replay.normalization != "full") {
      report(
          where_of("replay.store"),
          fmt::format("replay.store is empty, but replay.normalization = \"{}\" needs a store; name a folder, or use "
                      "normalization \"full\"",
                      replay.normalization));
    }
  }

  void check_data() {
    const auto& data = config_.data;
    if (data.train.empty()) report(where_of("data.train"), "data.train is empty: name a prefix");
    std::vector<std::string> sorted = data.train;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) {
      report(where_of("data.train"),
             fmt::format("data.train names \"{}\" twice; data.weights says how often a prefix is seen", *twice));
    }
    if (!data.weights.empty() && data.weights.size() != data.train.size()) {
      report(where_of("data.weights"),
             fmt::format("data.weights holds {} numbers for the {} prefixes of data.train; give one each, or none",
                         data.weights.size(), data.train.size()));
    }
  }

  RunConfig& config_;
  std::string name_;
  std::map<std::string, std::string> where_;
  std::vector<std::string> problems_;
};

}  // namespace

RunConfig parse_run_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides) {
  RunConfig config;
  Reader reader(config);
  reader.read_text(text, name);
  for (const std::string& override : overrides) reader.read_override(override);
  reader.finish();
  return config;
}

RunConfig read_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  constexpr std::int64_t kMaxBytes = std::int64_t{1} << 20;
  require(std::filesystem::exists(path), ErrorKind::kUsage,
          "{}: there is no such run file; `reprise init {}` writes one", path.string(), path.string());
  return parse_run_config(read_text_file(path, ErrorKind::kUsage, kMaxBytes), path.string(), overrides);
}

}  // namespace reprise
