#pragma once

#include <memory>

#include "parallel/communicator.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

/// A rank of a group that is not there: it has a place, splits into others like it, and refuses every exchange. What
/// only depends on where a rank stands (its parameters, its shards) can be asked for any world without starting it.
[[nodiscard]] std::unique_ptr<Communicator> make_plan_communicator(int rank, int size, std::string name);

/// The groups of one rank of a tensor x data grid; `world` is set by the caller, or stays null.
[[nodiscard]] ProcessGroups make_plan_groups(int tensor_size, int data_size, int tensor_rank);

}  // namespace reprise
