#include "optimizer/shard_plan.hpp"

#include <algorithm>
#include <numeric>

#include "optimizer/ownership.hpp"

namespace reprise {

namespace {

void add_chunks(ShardPlan& plan, std::int64_t segment, std::int64_t size) {
  for (std::int64_t offset = 0; offset < size; offset += ShardPlan::kChunkElements) {
    plan.chunks.push_back({segment, offset, std::min(ShardPlan::kChunkElements, size - offset)});
  }
}

void add_unswept(ShardPlan& plan, std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  // Padding between two slots stays zero, so that neighbours may be cleared as one.
  constexpr std::int64_t kLargestPadding = 15;
  if (!plan.unswept.empty() && begin - plan.unswept.back().end <= kLargestPadding) {
    plan.unswept.back().end = end;
  } else {
    plan.unswept.push_back({begin, end});
  }
}

}  // namespace

ShardPlan make_shard_plan(const std::vector<ParameterSpec>& specs, const FlatLayout& layout,
                          const std::vector<std::int64_t>& group_of_parameter, int ranks, int rank, bool replicated) {
  ShardPlan plan;
  std::vector<std::size_t> by_place(specs.size());
  for (std::size_t p = 0; p < specs.size(); ++p) by_place[p] = p;
  std::sort(by_place.begin(), by_place.end(),
            [&](std::size_t a, std::size_t b) { return layout.slots[a].begin < layout.slots[b].begin; });

  auto next = by_place.begin();
  for (const Bucket& bucket : layout.buckets) {
    const Range shard = shard_of(bucket, ranks, rank);
    const Range held = replicated ? Range{bucket.begin, bucket.end} : shard;
    const auto first_chunk = static_cast<std::int64_t>(plan.chunks.size());
    plan.state_of_bucket.push_back(plan.state_size);
    for (; next != by_place.end() && layout.slots[*next].begin < bucket.end; ++next) {
      const ParameterSpec& spec = specs[*next];
      const Range slot{layout.slots[*next].begin, layout.slots[*next].end};
      const Range parts[] = {{slot.begin, shard.begin}, shard, {shard.end, slot.end}};
      for (const Range& part : parts) {
        const Range own = intersect(slot, part);
        if (own.size() == 0) continue;
        const bool in_shard = intersect(own, shard).size() > 0;
        if (spec.frozen || !(in_shard || replicated)) {
          add_unswept(plan, own.begin, own.end);
          continue;
        }
        add_chunks(plan, static_cast<std::int64_t>(plan.segments.size()), own.size());
        plan.segments.push_back({.parameter = static_cast<std::int64_t>(*next),
                                 .group = group_of_parameter[*next],
                                 .begin = own.begin,
                                 .state = plan.state_size + own.begin - held.begin,
                                 .size = own.size(),
                                 .local = own.begin - slot.begin,
                                 .in_shard = in_shard,
                                 .owned = in_shard && spec.counted,
                                 .decay = spec.decay});
      }
    }
    plan.chunks_of_bucket.push_back({first_chunk, static_cast<std::int64_t>(plan.chunks.size())});
    plan.state_size += held.size();
  }
  return plan;
}

UpdateTable make_update_table(const ShardPlan& plan, std::int64_t groups, bool gradient_in_state,
                              bool master_in_state) {
  UpdateTable table;
  table.group_begin.assign(static_cast<std::size_t>(groups) + 1, 0);
  for (const Chunk& chunk : plan.chunks) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(chunk.segment)];
    if (segment.in_shard) ++table.group_begin[static_cast<std::size_t>(segment.group) + 1];
  }
  std::partial_sum(table.group_begin.begin(), table.group_begin.end(), table.group_begin.begin());

  std::vector<std::int64_t> next_slot = table.group_begin;
  for (const Chunk& chunk : plan.chunks) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(chunk.segment)];
    const std::int64_t flat = segment.begin + chunk.offset, state = segment.state + chunk.offset;
    table.chunks.push_back({.gradient = gradient_in_state ? state : flat,
                            .state = state,
                            .master = master_in_state ? state : flat,
                            .parameter = flat,
                            .size = chunk.size,
                            .slot = segment.in_shard ? next_slot[static_cast<std::size_t>(segment.group)]++ : -1,
                            .group = static_cast<std::int32_t>(segment.group),
                            .counted = segment.owned,
                            .decay = segment.decay});
  }
  return table;
}

}  // namespace reprise
