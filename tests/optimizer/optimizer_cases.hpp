#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace reprise {

/// A property of the optimizer that holds on every grid; run by all ranks of a world together, as threads or under
/// mpirun.
struct OptimizerCase {
  std::string name;
  void (*run)(Communicator& world, int tensor_size);
};
inline std::ostream& operator<<(std::ostream& out, const OptimizerCase& test) {
  return out << test.name;
}

[[nodiscard]] const std::vector<OptimizerCase>& optimizer_cases();

/// Runs the case for every tensor-parallel size that divides the world (from 4 on for more than 4 ranks).
void run_on_every_grid(const OptimizerCase& test, Communicator& world);

}  // namespace reprise
