#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "optimizer/optimizer.hpp"
#include "parallel/communicator.hpp"
#include "tests/optimizer/reference_optimizer.hpp"

namespace reprise {

struct RunSettings {
  OptimizerOptions options;
  int tensor_size = 1;
  int micro_batches = 1;
  int steps = 5;
  int threads = 1;
  bool exact = false;  ///< integer gradients, whose sums have no rounding
  std::int64_t bucket_elements = 100;
};

/// The whole model as the owners' pieces tell it; the same on every rank.
struct WholeState {
  std::vector<std::vector<double>> weight, exp_avg, exp_avg_sq, coverage;  ///< by tensor and element
  std::vector<StepResult> results;                                         ///< by step
  std::int64_t wrong_values = 0;  ///< parameter elements on any rank that differ from the owner's (rounded) weight

  friend bool operator==(const WholeState& a, const WholeState& b) {
    return a.weight == b.weight && a.exp_avg == b.exp_avg && a.exp_avg_sq == b.exp_avg_sq;
  }
};

inline constexpr double kRunRate = 0.01;

/// Trains the toy model over all ranks of `world` and gathers its state. Collective.
template <class T>
[[nodiscard]] WholeState run_training(Communicator& world, const RunSettings& settings);
/// The same on `ranks` threads.
template <class T>
[[nodiscard]] WholeState run_training_on_threads(int ranks, const RunSettings& settings);

/// Gathers masters and moments by owned_pieces(). Collective over the world.
template <class T>
[[nodiscard]] WholeState gather_state(const Context& context, Optimizer<T>& optimizer, ParameterSet<T>& parameters);

/// The oracle's run of the same model and steps, and its results.
struct ReferenceRun {
  ReferenceOptimizer optimizer;
  std::vector<StepResult> results;
};
[[nodiscard]] ReferenceRun run_reference(const RunSettings& settings);

/// Every element was covered once, every rank holds the owner's values, and weights, moments, norms and angles agree
/// with the oracle to float32 rounding.
void expect_close_to_reference(const WholeState& state, const ReferenceRun& reference, const std::string& what);

/// Every combination worth a run: optimizer, scope, reading of obtuse angles, caps, clipping, decay.
[[nodiscard]] std::vector<OptimizerOptions> option_cases();
[[nodiscard]] std::string name_of(const OptimizerOptions& options);

}  // namespace reprise
