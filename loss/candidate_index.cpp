#include "loss/candidate_index.hpp"

#include <algorithm>

#include "core/math.hpp"

namespace reprise {

std::int64_t LocalCandidates::position(const Tile& tile, std::int32_t id) const {
  const std::int32_t* begin = ids.data + tile.id_begin;
  const std::int32_t* end = ids.data + tile.id_end;
  const std::int32_t* found = std::lower_bound(begin, end, id);
  return found != end && *found == id ? found - begin : -1;
}

LocalCandidates find_local_candidates(const Context& context, const CandidateTiles& tiles, Range own,
                                      HostArrays& host_arrays) {
  const auto local_tiles = host_arrays.vector<LocalTile>(context.stream, tiles.size(), "candidate tiles");
  LocalCandidates local;
  local.own = own;
  std::int64_t num_ids = 0;
  for (std::int64_t i = 0; i < tiles.size(); ++i) {
    const std::int32_t* begin = tiles.ids.data + tiles.id_begin[i];
    const std::int32_t* end = tiles.ids.data + tiles.id_begin[i + 1];
    const std::int32_t* first = std::lower_bound(begin, end, own.begin);
    const std::int32_t* last = std::lower_bound(first, end, own.end);
    LocalCandidates::Tile& tile = local_tiles[i];
    tile = {tiles.token_begin[i], tiles.token_begin[i + 1], num_ids, num_ids + (last - first), local.num_logits};
    num_ids = tile.id_end;
    local.num_logits += tile.num_ids() * tile.tokens();
  }
  const auto ids = host_arrays.vector<std::int32_t>(context.stream, num_ids, "local candidates");
  for (std::int64_t i = 0; i < tiles.size(); ++i) {
    const std::int32_t* begin = tiles.ids.data + tiles.id_begin[i];
    const std::int32_t* end = tiles.ids.data + tiles.id_begin[i + 1];
    std::copy_n(std::lower_bound(begin, end, own.begin), local_tiles[i].num_ids(), ids.data + local_tiles[i].id_begin);
  }
  local.tiles = local_tiles;
  local.ids = ids;
  local.device_tiles = host_arrays.on_device<LocalTile>(context.stream, local_tiles);
  local.device_ids =
      context.stream.visit([&](const auto& stream) { return place_ids(stream, context, host_arrays, local); });
  return local;
}

VectorView<const std::int32_t> place_ids(const CpuStream&, const Context&, HostArrays&, const LocalCandidates& local) {
  return local.ids;
}

std::int64_t segment_end(const LocalCandidates& candidates, std::int64_t first, std::int64_t most_tokens) {
  const std::int64_t begin = candidates.tiles[first].token_begin;
  std::int64_t last = first + 1;
  while (last < candidates.tiles.size && candidates.tiles[last].token_end - begin <= most_tokens) ++last;
  return last;
}

ListedRows list_rows(const Context& context, const LocalCandidates& candidates, std::int64_t first, std::int64_t last) {
  const std::int64_t id_begin = candidates.tiles[first].id_begin, id_end = candidates.tiles[last - 1].id_end;
  const auto ids = candidates.ids.slice(id_begin, id_end - id_begin);
  const auto slots = context.arena.vector<std::int32_t>(ids.size, "slots of candidates");
  const auto rows = context.arena.vector<std::int64_t>(std::min(ids.size, candidates.own.size()), "listed rows");

  const Arena::Scope scope(context.arena);
  const auto slot_of = context.arena.vector<std::int32_t>(candidates.own.size(), "slots of vocabulary rows");
  std::fill(slot_of.begin(), slot_of.end(), -1);
  for (const std::int32_t id : ids) slot_of[id - candidates.own.begin] = 0;
  std::int32_t num_rows = 0;
  for (std::int64_t row = 0; row < slot_of.size; ++row) {
    if (slot_of[row] < 0) continue;
    rows[num_rows] = row;
    slot_of[row] = num_rows++;
  }
  for (std::int64_t i = 0; i < ids.size; ++i) slots[i] = slot_of[ids[i] - candidates.own.begin];
  return {candidates.tiles[first].token_begin, candidates.tiles[last - 1].token_end, rows.slice(0, num_rows), slots};
}

RowEntries sort_by_row(const Context& context, const LocalCandidates& candidates, std::int64_t first, std::int64_t last,
                       const ListedRows& listed, VectorView<const float> deltas) {
  const std::int64_t id_begin = candidates.tiles[first].id_begin;
  const auto begin = context.arena.vector<std::int64_t>(listed.rows.size + 1, "entries of listed rows");
  std::fill(begin.begin(), begin.end(), 0);
  std::int64_t num_entries = 0;
  for (std::int64_t i = first; i < last; ++i) {
    const LocalCandidates::Tile& tile = candidates.tiles[i];
    for (std::int64_t k = tile.id_begin; k < tile.id_end; ++k) begin[listed.slots[k - id_begin]] += tile.tokens();
    num_entries += tile.num_ids() * tile.tokens();
  }
  const auto entries = context.arena.vector<RowEntry>(num_entries, "candidates by row");
  // From counts to the end of each row's entries; filling from behind leaves the begin.
  std::int64_t end = 0;
  for (std::int64_t& row : begin) row = end += row;
  for (std::int64_t i = last - 1; i >= first; --i) {
    const LocalCandidates::Tile& tile = candidates.tiles[i];
    for (std::int64_t k = 0; k < tile.num_ids(); ++k) {
      std::int64_t& place = begin[listed.slots[tile.id_begin - id_begin + k]];
      for (std::int64_t t = tile.tokens() - 1; t >= 0; --t) {
        entries[--place] = {static_cast<std::int32_t>(tile.token_begin + t - listed.token_begin),
                            deltas[tile.logits + k * tile.tokens() + t]};
      }
    }
  }
  return {begin, entries};
}

}  // namespace reprise
