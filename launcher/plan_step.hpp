#pragma once

#include "launcher/run_shape.hpp"
#include "launcher/step_time.hpp"
#include "launcher/wire_estimate.hpp"

namespace reprise {

/// What the loss of a run does with its targets.
struct PlannedHead {
  TimedHead::Kind kind = TimedHead::Kind::kTile;
  std::int64_t tile_tokens = 8;
  double set_size = 100.0;    ///< mean ids a recorded set
  bool uniform_sets = false;  ///< see TimedHead
};
[[nodiscard]] PlannedHead planned_head(const RunConfig& config, double set_size);

/// A step of ours for estimate_step_time: products and kernels of this program, the collectives of estimate_wire.
/// `pairs`: (query, key) pairs of a micro-batch.
[[nodiscard]] TimedStep make_timed_step(const RunShape& run, const StepShape& step, double pairs,
                                        const Hardware& hardware, const PlannedHead& head);

/// Seconds of collecting `tokens` tokens and `targets` targets on one rank, micro-batch by micro-batch as in `step`:
/// forward, logits of the whole vocabulary in float32, the selection's reads of them.
[[nodiscard]] double collect_seconds(const Hardware& hardware, const TimedStep& step, double tokens, double targets);

}  // namespace reprise
