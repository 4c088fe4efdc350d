#pragma once

#include <cstdint>
#include <string_view>

namespace cuda_emulation {

/// In which order the threads of a block, and the blocks of a grid, are run. A result that depends on it is a race.
enum class Order : std::uint8_t { kAscending, kDescending, kShuffled };

struct Settings {
  Order order = Order::kAscending;
  std::uint64_t seed = 1;     ///< of kShuffled
  bool late_streams = false;  ///< work is done when something waits for it, not when it is asked for
  int num_devices = 1;
};

/// Process-wide; read by each launch and each stream when it is made. Set it while nothing runs.
[[nodiscard]] Settings settings();
void set_settings(const Settings& settings);
/// "ascending", "descending,late", "shuffled=7,late", ...; throws std::invalid_argument for anything else.
[[nodiscard]] Settings parse_settings(std::string_view text);

/// The settings of a scope; the former ones come back at its end.
class ScopedSettings {
 public:
  explicit ScopedSettings(const Settings& scoped) : former_(settings()) { set_settings(scoped); }
  ~ScopedSettings() { set_settings(former_); }
  ScopedSettings(const ScopedSettings&) = delete;
  ScopedSettings& operator=(const ScopedSettings&) = delete;

 private:
  Settings former_;
};

}  // namespace cuda_emulation
