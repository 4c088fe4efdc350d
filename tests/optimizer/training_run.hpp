#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/thread_pool.hpp"
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
  bool ahead = false;  ///< buckets are reduced one by one, the last first, before the rest
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

/// One rank of a data x tensor grid with the toy model and its optimizer.
template <class T>
class ToyTrainer {
 public:
  ToyTrainer(Communicator& world, const RunSettings& settings);

  /// Computes this rank's gradients of `step` and reduces them, as a training step does.
  void add_gradients(int step);
  /// The sums that belong to a step of this rank.
  [[nodiscard]] StepSums sums() const;
  /// add_gradients and the optimizer's step.
  StepResult run_step(int step);

  [[nodiscard]] const Context& context() const { return context_; }
  [[nodiscard]] const ProcessGroups& groups() const { return groups_; }
  [[nodiscard]] ParameterSet<T>& parameters() { return parameters_; }
  [[nodiscard]] Optimizer<T>& optimizer() { return *optimizer_; }
  /// Masters and moments of the whole model by the owners' pieces. Collective over the world.
  [[nodiscard]] WholeState gather();

 private:
  RunSettings settings_;
  ProcessGroups groups_;
  ThreadPool pool_;
  Stream stream_;
  Arena arena_;
  Context context_;
  ParameterSet<T> parameters_;
  std::unique_ptr<Optimizer<T>> optimizer_;
};

/// Trains the toy model over all ranks of `world` and gathers its state. Collective.
template <class T>
[[nodiscard]] WholeState run_training(Communicator& world, const RunSettings& settings);
/// The same on `ranks` threads.
template <class T>
[[nodiscard]] WholeState run_training_on_threads(int ranks, const RunSettings& settings);

/// The oracle's run of the same model and steps, and its results.
struct ReferenceRun {
  ReferenceOptimizer optimizer;
  std::vector<StepResult> results;
};
/// `bfloat16`: from weights that are rounded to it.
[[nodiscard]] ReferenceRun run_reference(const RunSettings& settings, bool bfloat16 = false);

/// Every element was covered once, every rank holds the owner's values, and weights, moments, norms and angles agree
/// with the oracle to float32 rounding.
void expect_close_to_reference(const WholeState& state, const ReferenceRun& reference, const std::string& what);

/// Every combination worth a run: optimizer, scope, reading of obtuse angles, caps, clipping, decay.
[[nodiscard]] std::vector<OptimizerOptions> option_cases();
[[nodiscard]] std::string name_of(const OptimizerOptions& options);

}  // namespace reprise
