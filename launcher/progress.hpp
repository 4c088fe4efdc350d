#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace reprise {

/// Progress of something long on rank 0's stderr: a redrawn bar with rate and remaining time on a terminal, elsewhere a
/// plain line at most every `seconds_between_lines`. A silent one (other ranks) prints nothing.
class Progress {
 public:
  Progress(std::string what, std::int64_t total, bool silent, double seconds_between_lines = 10.0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of the total; `note` stands behind the bar ("loss 1.234  lr 1e-4").
  void update(std::int64_t done, const std::string& note = {});
  /// Prints a line above the bar.
  void print(const std::string& line);
  void finish();

 private:
  void draw(std::int64_t done, const std::string& note, bool last);

  std::string what_, note_;
  std::int64_t total_, done_ = 0, first_ = -1;
  bool silent_, terminal_, finished_ = false;
  double seconds_between_lines_;
  std::chrono::steady_clock::time_point start_, last_drawn_;
};

/// "1.5 GiB", "12.3 s", "1,234,567".
[[nodiscard]] std::string format_bytes(std::int64_t bytes);
[[nodiscard]] std::string format_seconds(double seconds);
[[nodiscard]] std::string format_count(std::int64_t count);

}  // namespace reprise
