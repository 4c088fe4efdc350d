#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/view.hpp"

namespace reprise {

/// The recorded sets of one sample, as the replay store holds them (DESIGN of the store: docs/formats.md).
/// Records are ordered by position; record t's ids are ids[id_begin[t] .. id_begin[t+1]), sorted, unique, global.
struct SampleRecords {
  std::uint64_t sample_id = 0;
  std::uint64_t sample_hash = 0;
  std::vector<std::uint32_t> position;    ///< [T] index, in the sample, of the token whose hidden state predicts
  std::vector<std::uint32_t> gold;        ///< [T] the next token
  std::vector<std::uint8_t> flags;        ///< [T] kGoldForced, ...
  std::vector<float> mass;                ///< [T] probability covered by the set under the base model
  std::vector<float> confidence;          ///< [T] probability of gold under the base model
  std::vector<std::int64_t> id_begin{0};  ///< [T + 1]
  std::vector<std::uint32_t> ids;         ///< [I]
  std::vector<float> log_prob;            ///< [I] or empty: base model log-probabilities

  static constexpr std::uint8_t kGoldForced = 1;  ///< gold was outside the selected set
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(position.size()); }
};

/// Tokens cut into consecutive tiles; all tokens of a tile share the tile's candidates.
/// Tile i holds the tokens [token_begin[i], token_begin[i+1]) and the ids [id_begin[i], id_begin[i+1]).
/// normalization = "token" is one token a tile.
struct CandidateTiles {
  VectorView<const std::int64_t> token_begin;  ///< [tiles + 1]
  VectorView<const std::int64_t> id_begin;     ///< [tiles + 1]
  VectorView<const std::int32_t> ids;          ///< sorted, unique within a tile, global ids in [0, V)
  [[nodiscard]] std::int64_t size() const { return token_begin.size == 0 ? 0 : token_begin.size - 1; }
};

/// Owning form, filled sample by sample.
struct CandidateTilesBuilder {
  std::vector<std::int64_t> token_begin{0};
  std::vector<std::int64_t> id_begin{0};
  std::vector<std::int32_t> ids;

  /// Cuts ALL records of the sample, in order, into tiles of tile_tokens (the last may be short) and appends the tiles
  /// that keep at least one token. `keep[t]` says whether record t is in this batch (absent tokens still lend their
  /// sets, so truncation and masking never change another token's loss). tile_tokens = 1 gives token sets.
  void append(const SampleRecords& records, std::span<const std::uint8_t> keep, std::int64_t tile_tokens);
  void clear();
  [[nodiscard]] CandidateTiles view() const { return {token_begin, id_begin, ids}; }
};

/// `count` draws with replacement from [0, vocab_size) by hash(seed, step), sorted and made unique: the sampled
/// negatives that all tokens of all ranks share in a step.
[[nodiscard]] std::vector<std::int32_t> sample_negatives(std::uint64_t seed, std::uint64_t step, std::int64_t count,
                                                         std::int64_t vocab_size);

}  // namespace reprise
