#include "tests/optimizer/reference_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

namespace reprise {

namespace {

constexpr double kPi = std::numbers::pi;

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

std::vector<double> combine(double a, const std::vector<double>& x, double b, const std::vector<double>& y) {
  std::vector<double> result(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) result[i] = a * x[i] + b * y[i];
  return result;
}

std::vector<double> unit(const std::vector<double>& x) {
  return combine(1.0 / std::sqrt(dot(x, x)), x, 0.0, x);
}

}  // namespace

double angle_between(const std::vector<double>& a, const std::vector<double>& b) {
  const double norms = std::sqrt(dot(a, a) * dot(b, b));
  if (norms == 0.0) return -1.0;
  return std::acos(std::clamp(dot(a, b) / norms, -1.0, 1.0)) * 180.0 / kPi;
}

std::vector<double> reference_turn(const std::vector<double>& g, const std::vector<double>& m, double max_angle,
                                   Obtuse obtuse) {
  const double angle = angle_between(g, m);
  if (angle < 0.0 || max_angle == 180.0) return g;
  std::vector<double> parallel = combine(dot(g, m) / dot(m, m), m, 0.0, m);
  const std::vector<double> perpendicular = combine(1.0, g, -1.0, parallel);
  const double alpha = max_angle * kPi / 180.0, g_norm = std::sqrt(dot(g, g));
  if (angle > 90.0 && obtuse != Obtuse::kKeep) {
    if (obtuse == Obtuse::kDrop) return combine(0.0, g, 0.0, g);
    // Opposite vectors have no perpendicular direction: rotated, they end on m.
    const bool opposite = std::sqrt(dot(perpendicular, perpendicular)) < 1e-6 * g_norm;
    if (opposite) return combine(obtuse == Obtuse::kDrop || obtuse == Obtuse::kProject ? 0.0 : g_norm, unit(m), 0.0, m);
    const auto surface = combine(std::cos(alpha), unit(m), std::sin(alpha), unit(perpendicular));
    if (obtuse == Obtuse::kRotate) return combine(g_norm, surface, 0.0, surface);
    if (obtuse == Obtuse::kProject) return combine(std::max(0.0, dot(g, surface)), surface, 0.0, surface);
    parallel = combine(-1.0, parallel, 0.0, parallel);  // reflect
  }
  if (max_angle == 90.0) return combine(1.0, parallel, 1.0, perpendicular);
  const double allowed = std::sqrt(dot(parallel, parallel)) * std::tan(alpha);
  const double present = std::sqrt(dot(perpendicular, perpendicular));
  return combine(1.0, parallel, present > allowed ? allowed / present : 1.0, perpendicular);
}

void ReferenceOptimizer::cap_angles(std::vector<std::vector<double>>& gradients, AngleStatistics& statistics) const {
  std::map<std::string, std::vector<std::size_t>> groups;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    if (tensors_[t].frozen) continue;
    groups[options_.angle_scope == AngleScope::kTensor  ? tensors_[t].name
           : options_.angle_scope == AngleScope::kLayer ? tensors_[t].layer
                                                        : std::string()]
        .push_back(t);
  }
  for (const auto& [name, members] : groups) {
    std::vector<double> g, m;
    for (const std::size_t t : members) {
      g.insert(g.end(), gradients[t].begin(), gradients[t].end());
      m.insert(m.end(), tensors_[t].exp_avg.begin(), tensors_[t].exp_avg.end());
    }
    const double angle = angle_between(g, m);
    const auto turned = reference_turn(g, m, options_.max_angle, options_.obtuse);
    if (angle >= 0.0) {
      statistics.mean += angle;
      statistics.max = std::max(statistics.max, angle);
      statistics.groups += 1;
      const auto moved = combine(1.0, turned, -1.0, g);
      statistics.clipped_share += std::sqrt(dot(moved, moved)) > 1e-9 * std::sqrt(dot(g, g)) ? 1.0 : 0.0;
    }
    auto from = turned.begin();
    for (const std::size_t t : members) {
      const auto size = static_cast<std::ptrdiff_t>(gradients[t].size());
      std::copy(from, from + size, gradients[t].begin());
      from += size;
    }
  }
  if (statistics.groups > 0) {
    statistics.mean /= static_cast<double>(statistics.groups);
    statistics.clipped_share /= static_cast<double>(statistics.groups);
  }
}

StepResult ReferenceOptimizer::step(std::vector<std::vector<double>> gradients, double weight, double lr) {
  StepResult result;
  double squares = 0.0;
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    for (double& g : gradients[t]) {
      g = tensors_[t].frozen ? 0.0 : g / weight;
      squares += g * g;
    }
  }
  result.grad_norm = std::sqrt(squares);
  if (options_.clip_norm > 0.0 && result.grad_norm > options_.clip_norm) {
    for (auto& gradient : gradients) {
      for (double& g : gradient) g *= options_.clip_norm / result.grad_norm;
    }
  }
  if (options_.name == "moclip") cap_angles(gradients, result.angles);
  turned_ = gradients;
  ++steps_;
  const double c1 = 1.0 - std::pow(options_.beta1, steps_), c2 = 1.0 - std::pow(options_.beta2, steps_);
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    Tensor& tensor = tensors_[t];
    if (tensor.frozen) continue;
    for (std::size_t i = 0; i < tensor.weight.size(); ++i) {
      const double g = gradients[t][i];
      double& m = tensor.exp_avg[i];
      double& v = tensor.exp_avg_sq[i];
      m = options_.beta1 * m + (1.0 - options_.beta1) * g;
      v = options_.beta2 * v + (1.0 - options_.beta2) * g * g;
      const double m_hat = m / c1, root = std::sqrt(v / c2);
      const double move = options_.name == "moclip" ? std::atan2(m_hat, root) : m_hat / (root + options_.eps);
      tensor.weight[i] -= lr * (move + (tensor.decay ? options_.weight_decay : 0.0) * tensor.weight[i]);
    }
  }
  return result;
}

}  // namespace reprise
