#include "optimizer/angle_cap.hpp"

#include <array>

namespace reprise {

AngleCap::AngleCap(double max_angle, Obtuse obtuse)
    : off_(max_angle == 180.0),
      cos_max_(max_angle == 90.0 ? 0.0 : std::cos(max_angle / kDegrees)),
      sin_max_(std::sin(max_angle / kDegrees)),
      obtuse_(obtuse) {}

AngleStatistics angle_statistics(VectorView<const Turn> turns) {
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
