#pragma once

#include <vector>

#include "optimizer/optimizer.hpp"

namespace reprise {

/// The whole step in float64 over whole tensors, one naive loop behind the other, straight from the definition.
class ReferenceOptimizer {
 public:
  struct Tensor {
    std::string name, layer;
    bool decay = true, frozen = false;
    std::vector<double> weight, exp_avg, exp_avg_sq;
  };

  ReferenceOptimizer(OptimizerOptions options, std::vector<Tensor> tensors)
      : options_(std::move(options)), tensors_(std::move(tensors)) {}

  /// Gradients of sum w l, one vector per tensor.
  StepResult step(std::vector<std::vector<double>> gradients, double weight, double lr);

  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  /// g' of the last step, for tests of the cap.
  [[nodiscard]] const std::vector<std::vector<double>>& turned_gradients() const { return turned_; }

 private:
  void cap_angles(std::vector<std::vector<double>>& gradients, AngleStatistics& statistics) const;

  OptimizerOptions options_;
  std::vector<Tensor> tensors_;
  std::vector<std::vector<double>> turned_;
  int steps_ = 0;
};

/// g' for one group as vectors: the definition, not the formula in two scalars.
[[nodiscard]] std::vector<double> reference_turn(const std::vector<double>& g, const std::vector<double>& m,
                                                 double max_angle, Obtuse obtuse);
/// Degrees between two vectors; negative when one of them is zero.
[[nodiscard]] double angle_between(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace reprise
