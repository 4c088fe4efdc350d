#pragma once

#include <string>
#include <vector>

#include "launcher/run_shape.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// One kind of collective of a training step, by one rank.
struct WireEstimate {
  std::string group;  ///< "tp", "dp", "world", "kv"
  Collective verb = Collective::kAllReduce;
  std::string what;
  double calls = 0.0;
  double bytes = 0.0;  ///< sent, as CollectiveCount counts them
};

/// All collectives of one training step.
[[nodiscard]] std::vector<WireEstimate> estimate_wire(const RunShape& run, const StepShape& step);

}  // namespace reprise
