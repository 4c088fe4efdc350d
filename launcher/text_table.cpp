#include "launcher/text_table.hpp"

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace reprise {

namespace {

constexpr std::size_t kGap = 2;

}  // namespace

void TextTable::add(std::vector<std::string> cells) {
  REPRISE_CHECK(cells.size() <= columns_.size(), "{} cells for {} columns", cells.size(), columns_.size());
  rows_.push_back(std::move(cells));
}

std::string TextTable::text() const {
  std::vector<std::size_t> widths(columns_.size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  const std::size_t whole = std::accumulate(widths.begin(), widths.end(), kGap * (widths.size() - 1));
  std::string text;
  for (const auto& row : rows_) {
    std::string line(indent_, ' ');
    if (row.empty()) line.append(whole, '-');
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - row[c].size(), ' ');
      line += columns_[c] == 'r' ? padding + row[c] : row[c] + padding;
      line.append(kGap, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

std::string wrapped(const std::string& text, std::size_t width, std::size_t indent) {
  std::string result;
  std::size_t column = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (column > 0 && column + 1 + word.size() > width) {
      result += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > 0) {
      result += ' ';
      ++column;
    }
    result += word;
    column += word.size();
    begin = end + 1;
  }
  return result;
}

}  // namespace reprise
