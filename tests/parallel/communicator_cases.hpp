#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace reprise {

/// One property that every transport must have, on the memory of a stream's device; run by all ranks of a group
/// together. The oracles compute every rank's data from a hash, so each rank knows the exact bits that it must receive.
struct CommunicatorCase {
  std::string name;
  void (*run)(Communicator& group, const Stream& stream);
};
inline std::ostream& operator<<(std::ostream& out, const CommunicatorCase& test) {
  return out << test.name;
}

[[nodiscard]] const std::vector<CommunicatorCase>& communicator_cases();

}  // namespace reprise
