#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace reprise {

/// A fault that a test asks for through the environment: REPRISE_FAULT = "train.step=7,rank=1,action=kill".
///
/// The first key names the point and the count at which it fires; `rank` (of the world; absent = every rank) and
/// `action` are optional: kill (SIGKILL, the default), stop (SIGUSR1 to this process), nan (the caller makes its
/// gradient non-finite). Without the variable a point costs one comparison.
class FaultInjection {
 public:
  /// Throws Error(kUsage) for a text that it does not understand.
  [[nodiscard]] static FaultInjection from_environment(int rank);
  [[nodiscard]] static FaultInjection parse(std::string_view text, int rank);

  /// Fires when `point` has come to the count that was asked for. True: the caller has to act on `nan`.
  bool reached(std::string_view point, std::int64_t count) const {
    return armed_ && count == count_ && point == point_ && fire();
  }

 private:
  [[nodiscard]] bool fire() const;

  bool armed_ = false;
  std::string point_, action_ = "kill";
  std::int64_t count_ = 0;
};

}  // namespace reprise
