#pragma once

#include <string>
#include <vector>

namespace reprise {

/// Rows of cells in columns as wide as their widest cell, two spaces apart; numbers to the right.
class TextTable {
 public:
  /// `columns`: one letter a column, 'l' or 'r'.
  explicit TextTable(std::string columns, std::size_t indent = 2) : columns_(std::move(columns)), indent_(indent) {}

  void add(std::vector<std::string> cells);
  /// A line under the rows so far, as wide as the table.
  void add_rule() { add({}); }
  /// All rows, each with its line end.
  [[nodiscard]] std::string text() const;

 private:
  std::string columns_;
  std::size_t indent_;
  std::vector<std::vector<std::string>> rows_;  // an empty one is a rule
};

/// A text broken between words into lines of at most `width` characters, all but the first indented.
[[nodiscard]] std::string wrapped(const std::string& text, std::size_t width, std::size_t indent);

}  // namespace reprise
