#include "launcher/command_help.hpp"

#include <fmt/format.h>

#include "core/error.hpp"
#include "launcher/edit_distance.hpp"

namespace reprise {

CLI::Validator in_range(std::int64_t low, std::int64_t high) {
  return CLI::Range(low, high).description("");
}
CLI::Validator one_of(const std::vector<std::string>& names) {
  return CLI::IsMember(names).description("");
}
CLI::Validator at_least_one() {
  return CLI::PositiveNumber.description("");
}
CLI::Validator not_negative() {
  return CLI::NonNegativeNumber.description("");
}

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  const bool named = option->get_type_size() != 0 && !option->get_type_name().empty();
  return named ? " " + option->get_type_name() : "";
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  std::string text = option->get_description();
  if (!option->get_default_str().empty()) text += fmt::format(" (default: {})", option->get_default_str());
  if (option->get_required() && !option->get_positional()) text += " (required)";
  return text;
}

std::string HelpFormatter::make_usage(const CLI::App* app, std::string name) const {
  return "\n" + CLI::Formatter::make_usage(app, std::move(name));
}

std::string without_gaps(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c != '\n' || !result.ends_with("\n\n")) result += c;
  }
  return result.ends_with('\n') ? result : result + '\n';
}

void check_command_name(const CLI::App& app, const std::string& word) {
  if (word.starts_with('-')) return;
  std::string nearest;
  std::size_t best = 3;
  for (const CLI::App* known : app.get_subcommands({})) {
    const std::size_t distance = edit_distance(word, known->get_name());
    if (distance == 0) return;
    if (distance < best) {
      best = distance;
      nearest = known->get_name();
    }
  }
  fail(ErrorKind::kUsage, "unknown command \"{}\"{}\nsee: reprise --help", word,
       nearest.empty() ? "" : fmt::format("; did you mean \"{}\"?", nearest));
}

}  // namespace reprise
