#include "loss/loss_batch_check.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.hpp"

namespace reprise {

namespace {

void check_sorted_ids(VectorView<const std::int32_t> ids, std::int64_t vocab_size, const std::string& where) {
  for (std::int64_t i = 0; i < ids.size; ++i) {
    require(0 <= ids[i] && ids[i] < vocab_size, ErrorKind::kData, "{}: id {} is outside the vocabulary [0, {})", where,
            ids[i], vocab_size);
    require(i == 0 || ids[i - 1] < ids[i], ErrorKind::kData, "{}: ids are not sorted and unique: id {} follows id {}",
            where, ids[i], ids[std::max<std::int64_t>(i, 1) - 1]);
  }
}

std::string tile_name(std::int64_t tile, std::int64_t begin, std::int64_t end) {
  if (end - begin == 1) return fmt::format("candidates of token {}", begin);
  return fmt::format("candidates of tile {} (tokens {} to {})", tile, begin, end - 1);
}

void check_tile(const LossBatch& batch, std::int64_t tile, std::int64_t vocab_size) {
  const CandidateTiles& tiles = batch.tiles;
  const std::int64_t first = tiles.token_begin[tile], last = tiles.token_begin[tile + 1];
  const std::int64_t begin = tiles.id_begin[tile], end = tiles.id_begin[tile + 1];
  require(0 <= first && first < last && last <= batch.row.size, ErrorKind::kData,
          "tile {} holds the tokens [{}, {}) of a batch of {}", tile, first, last, batch.row.size);
  const std::string where = tile_name(tile, first, last);
  require(begin < end, ErrorKind::kData, "{}: the set is empty", where);
  require(0 <= begin && end <= tiles.ids.size, ErrorKind::kData, "{}: the set [{}, {}) reaches beyond the {} ids",
          where, begin, end, tiles.ids.size);
  const VectorView<const std::int32_t> ids = tiles.ids.slice(begin, end - begin);
  check_sorted_ids(ids, vocab_size, where);
  for (std::int64_t t = first; t < last; ++t) {
    const std::int32_t gold = batch.gold[t];
    require(gold == kIgnoredGold || std::binary_search(ids.begin(), ids.end(), gold), ErrorKind::kData,
            "{}: the gold id {} of token {} (row {}) is missing", where, gold, t, batch.row[t]);
  }
}

}  // namespace

void check_targets(const LossBatch& batch, std::int64_t total_rows, std::int64_t vocab_size) {
  const std::int64_t tokens = batch.row.size;
  require(batch.gold.size == tokens && batch.weight.size == tokens, ErrorKind::kData,
          "a loss batch has {} rows, {} golds and {} weights", tokens, batch.gold.size, batch.weight.size);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t row = batch.row[t], gold = batch.gold[t];
    require(0 <= row && row < total_rows, ErrorKind::kData, "token {}: row {} is outside the {} hidden states", t, row,
            total_rows);
    require(t == 0 || batch.row[t - 1] < row, ErrorKind::kData,
            "token {}: row {} follows row {}; rows must be strictly ascending", t, row,
            batch.row[std::max<std::int64_t>(t, 1) - 1]);
    require(gold == kIgnoredGold || (0 <= gold && gold < vocab_size), ErrorKind::kData,
            "token {} (row {}): gold id {} is outside the vocabulary [0, {})", t, row, gold, vocab_size);
    require(std::isfinite(batch.weight[t]) && batch.weight[t] >= 0.0f, ErrorKind::kData,
            "token {} (row {}): weight {} is not a finite number >= 0", t, row, batch.weight[t]);
  }
}

void check_candidates(const LossBatch& batch, std::int64_t vocab_size, Normalization normalization) {
  const CandidateTiles& tiles = batch.tiles;
  const std::int64_t tokens = batch.row.size;
  require(tiles.id_begin.size == tiles.token_begin.size, ErrorKind::kData,
          "{} token offsets but {} id offsets of tiles", tiles.token_begin.size, tiles.id_begin.size);
  const bool covered =
      tiles.size() == 0 ? tokens == 0 : tiles.token_begin[0] == 0 && tiles.token_begin[tiles.size()] == tokens;
  require(covered, ErrorKind::kData, "{} tiles do not cover the batch's {} tokens", tiles.size(), tokens);
  require(normalization != Normalization::kToken || tiles.size() == tokens, ErrorKind::kData,
          "token normalisation wants one set a token, but {} tokens come in {} tiles", tokens, tiles.size());
  for (std::int64_t tile = 0; tile < tiles.size(); ++tile) check_tile(batch, tile, vocab_size);
  check_sorted_ids(batch.negatives, vocab_size, "negatives");
}

void check_loss_options(const VocabPartition& vocab, const LossOptions& options) {
  require(vocab.tp_size() >= 1 && vocab.bounds.front() == 0 && vocab.bounds.back() >= vocab.vocab_size &&
              std::is_sorted(vocab.bounds.begin(), vocab.bounds.end()) && vocab.vocab_size >= 1,
          ErrorKind::kUsage, "the vocabulary shards [{}] do not tile [0, {})", fmt::join(vocab.bounds, ", "),
          vocab.vocab_size);
  require(std::isfinite(options.logit_scale) && options.logit_scale != 0.0f, ErrorKind::kUsage,
          "logit_scale = {} is not supported: give a finite number other than 0", options.logit_scale);
  require(std::isfinite(options.softcap) && options.softcap >= 0.0f, ErrorKind::kUsage,
          "softcap = {} is not supported: give a positive number, or 0 for none", options.softcap);
}

VectorView<const float> copy_effective_weights(const Context& context, const LossBatch& batch) {
  std::vector<float> weights(static_cast<std::size_t>(batch.row.size));
  for (std::int64_t t = 0; t < batch.row.size; ++t) weights[static_cast<std::size_t>(t)] = effective_weight(batch, t);
  return context.arena.copy<float>(weights, "token weights");
}

}  // namespace reprise
