#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/step_time.hpp"

namespace reprise {

/// One training step that somebody measured, beside what the model of docs/scaling.md says of it.
struct MeasuredStep {
  std::string source, name, hardware;
  std::string fitted;                      ///< the constant that was fitted on this row; empty: predicted blind
  double measured = 0.0, predicted = 0.0;  ///< seconds
  double head_measured = 0.0, head_predicted = 0.0;  ///< of the loss head; 0 where it was not measured
  StepTime time;

  [[nodiscard]] double error() const { return predicted / measured - 1.0; }
};

struct MeasuredSource {
  std::string id, title, place, date;  ///< of the table: its name, where it stands, when it was made
};

struct MeasuredSteps {
  std::vector<MeasuredSource> sources;
  std::vector<MeasuredStep> rows;
};

/// Reads a file of measured steps (configs/scaling/published.json: runs of other programs, whose kernels are described
/// under "software"; configs/scaling/cpu_steps.json: steps of this one) and predicts each. Throws Error(kUsage) naming
/// file, row and key.
[[nodiscard]] MeasuredSteps read_measured_steps(const std::filesystem::path& file);

/// The rows as Markdown: a table, then how many are within 10 and 20 %.
[[nodiscard]] std::string measured_steps_table(const MeasuredSteps& steps);

}  // namespace reprise
