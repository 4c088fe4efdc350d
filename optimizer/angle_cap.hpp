#pragma once

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
class AngleCap {
 public:
  AngleCap(double max_angle, Obtuse obtuse);

  [[nodiscard]] Turn turn(const GroupSums& sums) const;

 private:
  [[nodiscard]] double shortened(double cosine, double sine) const;
  void turn_obtuse(double cosine, double sine, double g_norm, double m_norm, Turn& turn) const;

  bool off_;
  double cos_max_, sin_max_;
  Obtuse obtuse_;
};

/// Mean, largest, quantiles (linear between neighbours) and share of turned groups over the measured ones.
[[nodiscard]] AngleStatistics angle_statistics(const std::vector<Turn>& turns);

}  // namespace reprise
