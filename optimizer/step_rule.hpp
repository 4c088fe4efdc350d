#pragma once

#include <cmath>
#include <cstdint>

#include "optimizer/angle_cap.hpp"
#include "optimizer/optimizer.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise {

// From the sums over all ranks to the scalars of the update: plain functions, constexpr so that the device decides
// without the host. Every rank has the same sums in the same order, so all decide alike.

/// What the scalars of all groups share in step t (from 1).
struct StepTerms {
  double beta1 = 0.0, rest1 = 0.0;  ///< rest1 = 1 - beta1
  double root2 = 0.0;               ///< sqrt(1 - beta2)
  UpdateScalars common{};
};
[[nodiscard]] StepTerms make_step_terms(const OptimizerOptions& options, std::int64_t t, double lr);

/// Scalars with g' = gradient G + momentum m, folded in float64 and rounded once.
[[nodiscard]] constexpr UpdateScalars make_update_scalars(const StepTerms& terms, double gradient, double momentum) {
  UpdateScalars scalars = terms.common;
  scalars.m_from_m = static_cast<float>(terms.beta1 + terms.rest1 * momentum);
  scalars.m_from_g = static_cast<float>(terms.rest1 * gradient);
  scalars.root_from_m = static_cast<float>(terms.root2 * momentum);
  scalars.root_from_g = static_cast<float>(terms.root2 * gradient);
  return scalars;
}

/// All that decide_step needs besides the sums.
struct StepRule {
  AngleCap cap;
  bool is_moclip = true;
  double clip_norm = 0.0;  ///< 0 = off
  StepTerms terms;
};

struct StepDecision {
  StepSums sums;           ///< over all ranks
  double grad_norm = 0.0;  ///< StepResult::grad_norm
  double scale = 0.0;      ///< s of DESIGN 10.1; 0 when skipped
  bool skipped = false;
};

namespace detail {
// Above it a square of a coordinate of s G could leave float32, and the second moment with it.
inline constexpr double kLargestScaledNorm = 1e18;
inline constexpr double kLargestScale = 1e30;  // so that s itself stays in float32

[[nodiscard]] constexpr bool is_finite(double value) {
  return value - value == 0.0;  // the difference of two infinities is NaN
}
}  // namespace detail

/// `all`: <G,G> and the non-finite coordinates of all groups together.
[[nodiscard]] constexpr StepDecision decide(double clip_norm, const GroupSums& all, const StepSums& sums) {
  StepDecision decision;
  decision.sums = sums;
  const double norm = std::sqrt(all.g_dot_g), weight = sums.weight;
  const double limit = clip_norm * weight;
  const double scale = (clip_norm > 0.0 && norm > limit ? limit / norm : 1.0) / weight;
  decision.grad_norm = weight > 0.0 ? norm / weight : 0.0;
  const bool sound = weight > 0.0 && detail::is_finite(weight) && detail::is_finite(sums.weighted_loss) &&
                     !(sums.error > 0.0) && all.non_finite == 0.0 && scale <= detail::kLargestScale &&
                     scale * norm <= detail::kLargestScaledNorm;
  decision.skipped = !sound;
  decision.scale = sound ? scale : 0.0;
  return decision;
}

/// How one group is turned; not at all by AdamW or in a skipped step.
[[nodiscard]] constexpr Turn turn_of(const StepRule& rule, const StepDecision& decision, const GroupSums& sums) {
  const double s = decision.scale;
  if (!rule.is_moclip || !(s > 0.0)) return {};
  return rule.cap.turn({s * sums.g_dot_m, s * s * sums.g_dot_g, sums.m_dot_m, 0.0});
}

// ---- as doubles: the groups' sums one behind the other, then the step's ---------------------------------------------

inline constexpr std::int64_t kDoublesPerGroup = 4;
inline constexpr std::int64_t kDoublesPerStep = 8;
static_assert(sizeof(GroupSums) == kDoublesPerGroup * sizeof(double));
static_assert(sizeof(StepSums) == kDoublesPerStep * sizeof(double));

constexpr void write_doubles(const GroupSums& sums, double* to) {
  to[0] = sums.g_dot_m;
  to[1] = sums.g_dot_g;
  to[2] = sums.m_dot_m;
  to[3] = sums.non_finite;
}
constexpr void write_doubles(const StepSums& sums, double* to) {
  to[0] = sums.weight;
  to[1] = sums.weighted_loss;
  to[2] = sums.tokens;
  to[3] = sums.stop;
  to[4] = sums.probe_mass;
  to[5] = sums.probe_tokens;
  to[6] = sums.error;
  to[7] = sums.reserved;
}
[[nodiscard]] constexpr GroupSums read_group_sums(const double* from) {
  return {from[0], from[1], from[2], from[3]};
}
[[nodiscard]] constexpr StepSums read_step_sums(const double* from) {
  return {from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7]};
}

}  // namespace reprise
