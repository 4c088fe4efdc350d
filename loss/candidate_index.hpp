#pragma once

#include <cstdint>

#include "core/host_arrays.hpp"
#include "loss/candidate_tile.hpp"
#include "loss/head_unit.hpp"
#include "loss/loss.hpp"

namespace reprise {

/// The part of every tile's candidates that lies on this rank, and where their logits are kept.
struct LocalCandidates {
  using Tile = LocalTile;

  VectorView<const Tile> tiles;               ///< host
  VectorView<const std::int32_t> ids;         ///< host: global ids, tile by tile, ascending within a tile
  VectorView<const Tile> device_tiles;        ///< the same where kernels read them; on the CPU the same views
  VectorView<const std::int32_t> device_ids;  ///< likewise
  Range own;                                  ///< this rank's real vocabulary ids
  std::int64_t num_logits = 0;

  /// Where `id` stands among the tile's ids of this rank, or -1.
  [[nodiscard]] std::int64_t position(const Tile& tile, std::int32_t id) const;
};

/// Copies what lies on this rank into memory of `host_arrays`, and to the device.
[[nodiscard]] LocalCandidates find_local_candidates(const Context& context, const CandidateTiles& tiles, Range own,
                                                    HostArrays& host_arrays);

/// `local.ids` where kernels read them. To a GPU they travel packed (packed_ids.hpp), at the side of its work.
[[nodiscard]] VectorView<const std::int32_t> place_ids(const CpuStream& stream, const Context& context,
                                                       HostArrays& host_arrays, const LocalCandidates& local);
[[nodiscard]] VectorView<const std::int32_t> place_ids(const CudaStream& stream, const Context& context,
                                                       HostArrays& host_arrays, const LocalCandidates& local);

/// The vocabulary rows that some consecutive tiles list.
struct ListedRows {
  std::int64_t token_begin = 0, token_end = 0;  ///< tokens of those tiles
  VectorView<const std::int64_t> rows;          ///< ascending, counted from this rank's first row
  VectorView<const std::int32_t> slots;         ///< for each candidate of the tiles, its place in `rows`

  [[nodiscard]] std::int64_t tokens() const { return token_end - token_begin; }
};

/// First tile behind a segment that starts with tile `first`: at most `most_tokens` tokens, at least one tile.
[[nodiscard]] std::int64_t segment_end(const LocalCandidates& candidates, std::int64_t first, std::int64_t most_tokens);

/// Rows of the tiles [first, last); arena memory.
[[nodiscard]] ListedRows list_rows(const Context& context, const LocalCandidates& candidates, std::int64_t first,
                                   std::int64_t last);

/// On the CPU: (token, delta) of those tiles sorted by row (counting sort, tokens in order within a row): row i of
/// `listed` has the entries [begin[i], begin[i + 1]). deltas: as LocalCandidates lays logits out. Arena memory.
struct RowEntries {
  VectorView<const std::int64_t> begin;  ///< [rows + 1]
  VectorView<const RowEntry> entries;
};
[[nodiscard]] RowEntries sort_by_row(const Context& context, const LocalCandidates& candidates, std::int64_t first,
                                     std::int64_t last, const ListedRows& listed, VectorView<const float> deltas);

}  // namespace reprise
