#pragma once

#include <cstdint>
#include <string>

namespace reprise {

enum class Decay : std::uint8_t { kCosine, kLinear, kConstant };
/// "cosine", "linear", "constant"; throws Error(kUsage) otherwise.
[[nodiscard]] Decay parse_decay(const std::string& name);

struct ScheduleOptions {
  double lr = 1e-4;
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 1;
  Decay decay = Decay::kCosine;
  double min_lr_ratio = 0.1;
};

/// Learning rate of the 0-based `step`: (step + 1) / warmup_steps of lr while warming up, then from lr down to
/// min_lr_ratio lr at the last step.
[[nodiscard]] double learning_rate(const ScheduleOptions& options, std::int64_t step);

}  // namespace reprise
