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

LocalCandidates find_local_candidates(const Context& context, const CandidateTiles& tiles, Range own) {
  const auto local_tiles = context.arena.vector<LocalCandidates::Tile>(tiles.size(), "candidate tiles");
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
  const auto ids = context.arena.vector<std::int32_t>(num_ids, "local candidates");
  for (std::int64_t i = 0; i < tiles.size(); ++i) {
    const std::int32_t* begin = tiles.ids.data + tiles.id_begin[i];
    const std::int32_t* end = tiles.ids.data + tiles.id_begin[i + 1];
    std::copy_n(std::lower_bound(begin, end, own.begin), local_tiles[i].num_ids(), ids.data + local_tiles[i].id_begin);
  }
  local.tiles = local_tiles;
  local.ids = ids;
  return local;
}

std::int64_t segment_end(const LocalCandidates& candidates, std::int64_t first) {
  const std::int64_t begin = candidates.tiles[first].token_begin;
  std::int64_t last = first + 1;
  while (last < candidates.tiles.size && candidates.tiles[last].token_end - begin <= kSegmentTokens) ++last;
  return last;
}

RowIndex index_rows(const Context& context, const LocalCandidates& candidates, std::int64_t first, std::int64_t last) {
  const std::int64_t vocab_rows = candidates.own.size();
  const std::int64_t id_begin = candidates.tiles[first].id_begin, id_end = candidates.tiles[last - 1].id_end;
  const auto ids = candidates.ids.slice(id_begin, id_end - id_begin);
  const auto row_of = [&](std::int64_t i) { return ids[i] - candidates.own.begin; };

  const auto next = context.arena.vector<std::int64_t>(vocab_rows, "entries by vocabulary row");
  std::fill(next.begin(), next.end(), 0);
  for (std::int64_t i = 0; i < ids.size; ++i) ++next[row_of(i)];
  const std::int64_t num_rows = vocab_rows - std::count(next.begin(), next.end(), 0);
  const auto rows = context.arena.vector<std::int64_t>(num_rows, "listed rows");
  const auto entry_begin = context.arena.vector<std::int64_t>(num_rows + 1, "entries of listed rows");
  std::int64_t row = 0, entry = 0;
  for (std::int64_t v = 0; v < vocab_rows; ++v) {
    const std::int64_t count = next[v];
    if (count == 0) continue;
    rows[row] = v;
    entry_begin[row++] = entry;
    next[v] = entry;
    entry += count;
  }
  entry_begin[row] = entry;

  const std::int64_t token_begin = candidates.tiles[first].token_begin;
  const auto entries = context.arena.vector<RowEntry>(ids.size, "candidates by row");
  for (std::int64_t i = first; i < last; ++i) {
    const LocalCandidates::Tile& tile = candidates.tiles[i];
    for (std::int64_t k = 0; k < tile.num_ids(); ++k) {
      entries[next[row_of(tile.id_begin - id_begin + k)]++] = {
          static_cast<std::int32_t>(tile.token_begin - token_begin), static_cast<std::int32_t>(tile.tokens()),
          tile.logits + k * tile.tokens()};
    }
  }
  return {token_begin, candidates.tiles[last - 1].token_end, rows, entry_begin, entries};
}

}  // namespace reprise
