#pragma once

#include <memory>

#include "parallel/communicator.hpp"

namespace reprise {

/// The grid of ranks, tensor fastest: world rank = dp_rank * tp_size + tp_rank.
struct ProcessGroups {
  Communicator* world = nullptr;  ///< not owned
  std::unique_ptr<Communicator> tp;
  std::unique_ptr<Communicator> dp;

  /// Throws Error(kUsage) that states the legal values when tensor does not divide the world. Collective.
  [[nodiscard]] static ProcessGroups make(Communicator& world, int tensor_size);

  [[nodiscard]] int tp_rank() const { return tp->rank(); }
  [[nodiscard]] int tp_size() const { return tp->size(); }
  [[nodiscard]] int dp_rank() const { return dp->rank(); }
  [[nodiscard]] int dp_size() const { return dp->size(); }
};

}  // namespace reprise
