#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/context.hpp"

namespace reprise {

/// Which angle group each parameter belongs to; -1 for frozen ones.
struct AngleGroups {
  std::vector<std::string> names;  ///< in order of first appearance
  std::vector<std::int64_t> of_parameter;
};
[[nodiscard]] AngleGroups make_angle_groups(const std::vector<ParameterSpec>& specs, AngleScope scope);

/// Elements of bucket `bucket` that data-parallel rank `rank` of `ranks` owns.
[[nodiscard]] Range shard_of(const Bucket& bucket, int ranks, int rank);

/// This rank's block of every parameter, seen beside those of its tensor-parallel group.
struct Ownership {
  /// Parameters with sum_over_tp whose copies lie on the same ranks; `group` null = the whole tensor-parallel group.
  struct SharedCopies {
    std::vector<std::int64_t> parameters;
    std::unique_ptr<Communicator> group;
  };
  std::vector<SharedCopies> shared;  ///< those that exist once are left out
};

/// Builds the manifest and checks it over all ranks:
///   every rank declares the same parameters (name, layer, global shape, flags) in the same order,
///   data-parallel replicas hold the same blocks, laid out for exactly dp_size shards,
///   the blocks that are counted tile each parameter: disjoint, and owned element counts over all ranks add up to its
///   logical size,
///   blocks of a sum_over_tp parameter are equal or disjoint.
/// Throws Error(kInternal) on every rank, naming the parameter. Collective over the world.
[[nodiscard]] Ownership make_ownership(const Context& context, const std::vector<ParameterSpec>& specs,
                                       const FlatLayout& layout);

}  // namespace reprise
