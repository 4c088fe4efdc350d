#pragma once

#include <cstdint>
#include <vector>

#include "core/parameter.hpp"
#include "optimizer/update_kernels.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// A part of one parameter whose moments this rank holds; never crosses a shard.
struct Segment {
  std::int64_t parameter = 0;
  std::int64_t group = 0;  ///< angle group
  std::int64_t begin = 0;  ///< first element in the flat buffers
  std::int64_t state = 0;  ///< the same element in this rank's state buffers
  std::int64_t size = 0;
  std::int64_t local = 0;  ///< the same element in the parameter's row-major block
  bool in_shard = false;   ///< else a copy of what another data-parallel rank owns (ZeRO 0)
  bool owned = false;      ///< in_shard and counted: enters sums and checkpoints
  bool decay = false;
};

/// A piece of a segment that one thread, or one block of threads, handles at a time.
struct Chunk {
  std::int64_t segment = 0;
  std::int64_t offset = 0;  ///< from the segment's beginning
  std::int64_t size = 0;
};

/// What one rank sums, updates and clears, made once. Chunk bounds are multiples of kChunkElements from the beginning
/// of a segment: they depend on the layout alone, never on threads.
struct ShardPlan {
  static constexpr std::int64_t kChunkElements = 16384;

  std::vector<Segment> segments;              ///< in flat order
  std::vector<Chunk> chunks;                  ///< in flat order
  std::vector<Range> chunks_of_bucket;        ///< by bucket, indices of `chunks`
  std::vector<std::int64_t> state_of_bucket;  ///< by bucket, where its first held element lies in the state buffers
  std::int64_t state_size = 0;
  std::vector<Range> unswept;  ///< flat ranges of parameters that no update clears: others' shards, frozen
};

/// `replicated` (ZeRO 0): this rank holds the state of every element, but owns only its shard.
[[nodiscard]] ShardPlan make_shard_plan(const std::vector<ParameterSpec>& specs, const FlatLayout& layout,
                                        const std::vector<std::int64_t>& group_of_parameter, int ranks, int rank,
                                        bool replicated);

/// The plan's chunks as the kernels take them. Slots of sums are numbered group by group, within a group in flat order;
/// group g has those in [group_begin[g], group_begin[g + 1]).
struct UpdateTable {
  std::vector<UpdateChunk> chunks;        ///< as in the plan
  std::vector<std::int64_t> group_begin;  ///< [groups + 1]
};
/// `gradient_in_state`: gradients lie like the state, not like the parameters; `master_in_state`: so do master weights.
[[nodiscard]] UpdateTable make_update_table(const ShardPlan& plan, std::int64_t groups, bool gradient_in_state,
                                            bool master_in_state);

}  // namespace reprise
