#include "optimizer/angle_cap.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace reprise {

namespace {

constexpr double kDegrees = 180.0 / std::numbers::pi;
// Below it the direction of the perpendicular part is float32 rounding of G.
constexpr double kSmallestSine = 1e-6;
// |G| / |m| above it would leave float32; such a momentum counts as zero.
constexpr double kLargestRatio = 1e30;

}  // namespace

AngleCap::AngleCap(double max_angle, Obtuse obtuse)
    : off_(max_angle == 180.0),
      cos_max_(max_angle == 90.0 ? 0.0 : std::cos(max_angle / kDegrees)),
      sin_max_(std::sin(max_angle / kDegrees)),
      obtuse_(obtuse) {}

// min(1, |cos| tan(max_angle) / sin) without a division by zero at 0, 90 and 180 degrees.
double AngleCap::shortened(double cosine, double sine) const {
  const double allowed = std::abs(cosine) * sin_max_, present = sine * cos_max_;
  return allowed >= present ? 1.0 : allowed / present;
}

Turn AngleCap::turn(const GroupSums& sums) const {
  Turn turn;
  const double g_norm = std::sqrt(sums.g_dot_g), m_norm = std::sqrt(sums.m_dot_m);
  if (!(g_norm > 0.0) || !(m_norm > 0.0) || g_norm / m_norm > kLargestRatio) return turn;
  const double cosine = std::clamp(sums.g_dot_m / (g_norm * m_norm), -1.0, 1.0);
  const double sine = std::sqrt(std::max(0.0, 1.0 - cosine * cosine));
  turn.angle = std::atan2(sine, cosine) * kDegrees;
  turn.measured = true;
  if (off_) return turn;
  if (cosine < 0.0 && obtuse_ != Obtuse::kKeep) {
    turn_obtuse(cosine, sine, g_norm, m_norm, turn);
  } else {
    const double kappa = shortened(cosine, sine);
    turn.gradient = kappa;
    turn.momentum = (1.0 - kappa) * cosine * g_norm / m_norm;
  }
  turn.turned = turn.gradient != 1.0 || turn.momentum != 0.0;
  return turn;
}

void AngleCap::turn_obtuse(double cosine, double sine, double g_norm, double m_norm, Turn& turn) const {
  const double ratio = g_norm / m_norm;
  // along = part of |G| along m / |m|; across = part along the perpendicular unit vector (G - |G| cos m / |m|) / |G|
  // sin
  double along = 0.0, across = 0.0;
  switch (obtuse_) {
    case Obtuse::kKeep:
    case Obtuse::kDrop: break;
    case Obtuse::kProject: {
      const double length = std::max(0.0, cosine * cos_max_ + sine * sin_max_);
      along = length * cos_max_;
      across = length * sin_max_;
      break;
    }
    case Obtuse::kReflect:
      along = -cosine;
      across = shortened(cosine, sine) * sine;
      break;
    case Obtuse::kRotate:
      along = sine < kSmallestSine ? 1.0 : cos_max_;
      across = sine < kSmallestSine ? 0.0 : sin_max_;
      break;
  }
  turn.gradient = sine < kSmallestSine ? 0.0 : across / sine;
  turn.momentum = (along - turn.gradient * cosine) * ratio;
}

AngleStatistics angle_statistics(const std::vector<Turn>& turns) {
  std::vector<double> angles;
  double turned = 0.0, sum = 0.0;
  for (const Turn& turn : turns) {
    if (!turn.measured) continue;
    angles.push_back(turn.angle);
    sum += turn.angle;
    turned += turn.turned ? 1.0 : 0.0;
  }
  AngleStatistics statistics;
  if (angles.empty()) return statistics;
  std::sort(angles.begin(), angles.end());
  const auto count = static_cast<double>(angles.size());
  statistics.groups = static_cast<std::int64_t>(angles.size());
  statistics.mean = sum / count;
  statistics.max = angles.back();
  statistics.clipped_share = turned / count;
  constexpr std::array<double, 5> kShares{0.05, 0.25, 0.5, 0.75, 0.95};
  for (std::size_t q = 0; q < kShares.size(); ++q) {
    const double place = kShares[q] * (count - 1.0);
    const auto below = static_cast<std::size_t>(place);
    const auto above = std::min(below + 1, angles.size() - 1);
    statistics.quantiles[q] = std::lerp(angles[below], angles[above], place - static_cast<double>(below));
  }
  return statistics;
}

}  // namespace reprise
