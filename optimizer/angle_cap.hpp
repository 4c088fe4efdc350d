#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "optimizer/optimizer.hpp"

namespace reprise {

/// Sums over all coordinates of one angle group, each coordinate counted once over all ranks: what travels in the
/// step's one collective. G is the raw summed gradient, m the momentum before the step.
struct GroupSums {
  double g_dot_m = 0.0;
  double g_dot_g = 0.0;
  double m_dot_m = 0.0;
  double non_finite = 0.0;  ///< NaN and Inf coordinates of G (and of m, should it ever overflow)

  constexpr GroupSums& operator+=(const GroupSums& part) {
    g_dot_m += part.g_dot_m;
    g_dot_g += part.g_dot_g;
    m_dot_m += part.m_dot_m;
    non_finite += part.non_finite;
    return *this;
  }
};

/// The turned gradient as a combination: g' = gradient G + momentum m.
struct Turn {
  double gradient = 1.0;
  double momentum = 0.0;
  double angle = 0.0;     ///< degrees between G and m, before turning
  bool measured = false;  ///< both G and m are nonzero
  bool turned = false;    ///< g' differs from G
};

/// The cap on the angle between gradient and momentum, for one group at a time.
///
/// With cos the cosine between G and m, sin = sqrt(max(0, 1 - cos^2)) and c = <G,m>/<m,m>:
///   g' = kappa G + (1 - kappa) c m,  kappa = min(1, |cos| tan(max_angle) / sin),
/// which keeps the parallel part and shortens the perpendicular one. `obtuse` decides for cos < 0:
///   keep     the formula above; then |cos(g', m)| >= cos(max_angle)
///   drop     g' = 0: without its parallel part nothing is left inside the cone
///   project  the nearest point of the cone of half-angle max_angle around m; 0 from max_angle + 90 degrees on
///   reflect  the parallel part changes its sign, then the formula above
///   rotate   onto the cone's surface, norm kept; onto m itself where the perpendicular part is lost in rounding
/// g' = G for a zero G, a zero m (so on the first step), and max_angle = 180.
/// Passed by value to kernels: `turn` is constexpr so that device code may call it.
class AngleCap {
 public:
  AngleCap(double max_angle, Obtuse obtuse);

  [[nodiscard]] constexpr Turn turn(const GroupSums& sums) const;

 private:
  [[nodiscard]] constexpr double shortened(double cosine, double sine) const;
  constexpr void turn_obtuse(double cosine, double sine, double g_norm, double m_norm, Turn& turn) const;

  static constexpr double kDegrees = 180.0 / std::numbers::pi;
  // Below it the direction of the perpendicular part is float32 rounding of G.
  static constexpr double kSmallestSine = 1e-6;
  // |G| / |m| above it would leave float32; such a momentum counts as zero.
  static constexpr double kLargestRatio = 1e30;

  bool off_;
  double cos_max_, sin_max_;
  Obtuse obtuse_;
};

// min(1, |cos| tan(max_angle) / sin) without a division by zero at 0, 90 and 180 degrees.
constexpr double AngleCap::shortened(double cosine, double sine) const {
  const double allowed = std::abs(cosine) * sin_max_, present = sine * cos_max_;
  return allowed >= present ? 1.0 : allowed / present;
}

constexpr Turn AngleCap::turn(const GroupSums& sums) const {
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

constexpr void AngleCap::turn_obtuse(double cosine, double sine, double g_norm, double m_norm, Turn& turn) const {
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

/// Mean, largest, quantiles (linear between neighbours) and share of turned groups over the measured ones.
[[nodiscard]] AngleStatistics angle_statistics(VectorView<const Turn> turns);

}  // namespace reprise
