#include "launcher/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace reprise {

namespace {

constexpr double kSecondsBetweenRedraws = 0.1;
constexpr const char* kClearLine = "\r\033[K";

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool is_terminal() {
  const char* type = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) != 0 && type != nullptr && std::string_view(type) != "dumb";
}

std::size_t terminal_columns() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

std::string format_rate(double per_second) {
  if (per_second >= 1.0) return fmt::format("{:.{}f}/s", per_second, per_second < 10.0 ? 1 : 0);
  return format_seconds(1.0 / per_second) + " each";
}

void put(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

Progress::Progress(std::string what, std::int64_t total, bool silent, double seconds_between_lines)
    : what_(std::move(what)),
      total_(std::max<std::int64_t>(total, 0)),
      silent_(silent),
      terminal_(!silent && is_terminal()),
      seconds_between_lines_(seconds_between_lines),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  // An exception is on its way: what is drawn stays, and the error begins on a line of its own.
  if (!silent_ && !finished_ && terminal_ && first_ >= 0) put("\n");
}

void Progress::update(std::int64_t done, const std::string& note) {
  done_ = done;
  note_ = note;
  if (silent_ || finished_) return;
  const bool is_first = first_ < 0;
  if (is_first) first_ = done;
  const double pause = terminal_ ? kSecondsBetweenRedraws : seconds_between_lines_;
  if (!is_first && seconds_since(last_drawn_) < pause) return;
  draw(done, note, false);
}

void Progress::print(const std::string& line) {
  if (silent_) return;
  put(fmt::format("{}{}\n", terminal_ ? kClearLine : "", line));
  if (terminal_ && first_ >= 0 && !finished_) draw(done_, note_, false);
}

void Progress::finish() {
  if (silent_ || finished_) return;
  if (first_ < 0) first_ = 0;
  draw(done_, note_, true);
  finished_ = true;
}

void Progress::draw(std::int64_t done, const std::string& note, bool last) {
  last_drawn_ = std::chrono::steady_clock::now();
  const double seconds = seconds_since(start_);
  const double share =
      total_ == 0 ? 1.0 : std::clamp(static_cast<double>(done) / static_cast<double>(total_), 0.0, 1.0);
  const double rate = seconds > 0.0 ? static_cast<double>(done - first_) / seconds : 0.0;
  std::string facts = fmt::format("{}/{}", format_count(done), format_count(total_));
  if (rate > 0.0) facts += fmt::format("  {}", format_rate(rate));
  if (last) {
    facts += fmt::format("  {}", format_seconds(seconds));
  } else if (rate > 0.0 && total_ > done) {
    facts += fmt::format("  {} left", format_seconds(static_cast<double>(total_ - done) / rate));
  }
  if (!note.empty()) facts += fmt::format("  {}", note);
  if (!terminal_) {
    put(fmt::format("{}  {:3.0f} %  {}\n", what_, 100.0 * share, facts));
    return;
  }
  constexpr std::size_t kBar = 24;
  const auto filled = static_cast<std::size_t>(share * static_cast<double>(kBar));
  std::string line = fmt::format("{} [{}{}] {:3.0f} %  {}", what_, std::string(filled, '='),
                                 std::string(kBar - filled, ' '), 100.0 * share, facts);
  const std::size_t columns = terminal_columns();
  if (!last && line.size() >= columns) line.resize(columns - 1);  // a wrapped line could not be redrawn
  put(fmt::format("{}{}{}", kClearLine, line, last ? "\n" : ""));
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while ((value >= 1000.0 || value <= -1000.0) && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  const bool whole = unit == 0 || value >= 100.0;
  return fmt::format("{:.{}f} {}", value, whole ? 0 : 1, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  if (seconds < 0.0995) return fmt::format("{:.{}f} ms", 1000.0 * seconds, seconds < 0.00995 ? 1 : 0);
  if (seconds < 99.5) return fmt::format("{:.{}f} s", seconds, seconds < 9.95 ? 1 : 0);
  const auto total = static_cast<std::int64_t>(seconds + 0.5);
  const std::int64_t minutes = total / 60 % 60, hours = total / 3600 % 24, days = total / 86400;
  if (total < 3600) return fmt::format("{} min {:02} s", minutes, total % 60);
  if (days == 0) return fmt::format("{} h {:02} min", hours, minutes);
  return fmt::format("{} d {:02} h", days, hours);
}

std::string format_count(std::int64_t count) {
  const std::string digits = fmt::format("{}", count);
  const std::size_t first = count < 0 ? 1 : 0;
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > first && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace reprise
