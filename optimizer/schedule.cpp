#include "optimizer/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.hpp"

namespace reprise {

Decay parse_decay(const std::string& name) {
  if (name == "cosine") return Decay::kCosine;
  if (name == "linear") return Decay::kLinear;
  if (name == "constant") return Decay::kConstant;
  fail(ErrorKind::kUsage, "schedule.decay = \"{}\" is not known; use \"cosine\", \"linear\" or \"constant\"", name);
}

double learning_rate(const ScheduleOptions& options, std::int64_t step) {
  require(std::isfinite(options.lr) && options.lr >= 0.0, ErrorKind::kUsage,
          "optimizer.lr = {} must be a finite number >= 0", options.lr);
  require(options.warmup_steps >= 0, ErrorKind::kUsage, "schedule.warmup_steps = {} must be >= 0",
          options.warmup_steps);
  require(options.min_lr_ratio >= 0.0 && options.min_lr_ratio <= 1.0, ErrorKind::kUsage,
          "schedule.min_lr_ratio = {} must be in [0, 1]", options.min_lr_ratio);
  if (step < options.warmup_steps) {
    return options.lr * static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps);
  }
  if (options.decay == Decay::kConstant) return options.lr;
  // The first step after the warm-up runs at lr, the last one at min_lr_ratio lr, and so do all behind it.
  const std::int64_t last = options.total_steps - 1;
  const std::int64_t span = last - options.warmup_steps;
  const double progress =
      span <= 0 ? 0.0 : std::min(1.0, static_cast<double>(step - options.warmup_steps) / static_cast<double>(span));
  const double share =
      options.decay == Decay::kLinear ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return options.lr * (options.min_lr_ratio + (1.0 - options.min_lr_ratio) * share);
}

}  // namespace reprise
