#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace reprise {

// How the program's help looks, and what it says of a wrong command line.

// Checks without words of their own in the help.
[[nodiscard]] CLI::Validator in_range(std::int64_t low, std::int64_t high);
[[nodiscard]] CLI::Validator one_of(const std::vector<std::string>& names);
[[nodiscard]] CLI::Validator at_least_one();
[[nodiscard]] CLI::Validator not_negative();

/// Short option columns: what a value is called stands there, all else in the sentence behind.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override;
  std::string make_option_desc(const CLI::Option* option) const override;
  std::string make_usage(const CLI::App* app, std::string name) const override;
};

/// At most one blank line between two others.
[[nodiscard]] std::string without_gaps(const std::string& text);

/// A word that is nearly a command deserves a better answer than "not expected": Error(kUsage) with the nearest.
void check_command_name(const CLI::App& app, const std::string& word);

}  // namespace reprise
