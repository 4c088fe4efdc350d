#include "parallel/process_groups.hpp"

#include <string>

#include "core/error.hpp"

namespace reprise {

namespace {

std::string divisors_of(int size) {
  std::string list;
  for (int d = 1; d <= size; ++d) {
    if (size % d == 0) list += (list.empty() ? "" : ", ") + std::to_string(d);
  }
  return list;
}

}  // namespace

ProcessGroups ProcessGroups::make(Communicator& world, int tensor_size) {
  require(tensor_size >= 1 && world.size() % tensor_size == 0, ErrorKind::kUsage,
          "parallel.tensor = {} does not divide the {} ranks of this job; use one of {}", tensor_size, world.size(),
          divisors_of(world.size()));
  const int tp_rank = world.rank() % tensor_size;
  const int dp_rank = world.rank() / tensor_size;
  ProcessGroups groups;
  groups.world = &world;
  groups.tp = world.split(dp_rank, tp_rank, "tp");
  groups.dp = world.split(tp_rank, dp_rank, "dp");
  return groups;
}

}  // namespace reprise
