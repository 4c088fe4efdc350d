#include "loss/sampled_negatives.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "loss/full_cross_entropy.hpp"
#include "loss/restricted_head_simd.hpp"
#include "loss/softmax_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;
constexpr std::int64_t kChunkTokens = 1024;

template <class T>
MatrixView<const float> gather_float_rows(const Context& context, MatrixView<const T> weight,
                                          VectorView<const std::int32_t> ids, std::int64_t first_id) {
  const auto rows = context.arena.matrix<float>(ids.size, weight.cols, "rows of sampled negatives");
  for (std::int64_t i = 0; i < ids.size; ++i) {
    cast<float, T>(context.stream, weight.row(ids[i] - first_id), rows.row(i));
  }
  return rows;
}

}  // namespace

/// Which negatives are members of which tile: on this rank as columns, over all ranks as a count (every rank knows all
/// candidates, so nothing is exchanged).
void SampledNegatives::find_members(const Context& context, const LossBatch& batch, Range own,
                                    std::int64_t vocab_size) {
  const auto& negatives = batch.negatives;
  const auto* own_begin = std::lower_bound(negatives.begin(), negatives.end(), own.begin);
  const auto* own_end = std::lower_bound(own_begin, negatives.end(), own.end);
  ids_ = copy_to_arena(context, {own_begin, own_end - own_begin});

  const auto tiles = context.arena.vector<Tile>(batch.tiles.size(), "tiles of negatives");
  const auto tile_of = context.arena.vector<std::int32_t>(batch.row.size, "tiles of tokens");
  const auto members = context.arena.vector<std::int32_t>(batch.tiles.size() * ids_.size, "negatives among candidates");
  std::int64_t num_members = 0;
  for (std::int64_t i = 0; i < tiles.size; ++i) {
    const auto candidates =
        batch.tiles.ids.slice(batch.tiles.id_begin[i], batch.tiles.id_begin[i + 1] - batch.tiles.id_begin[i]);
    Tile& tile = tiles[i];
    tile = {batch.tiles.token_begin[i], batch.tiles.token_begin[i + 1], num_members, num_members, 0.0f};
    std::int64_t kept = 0;
    for (const auto* id = negatives.begin(); id != negatives.end(); ++id) {
      const bool is_member = std::binary_search(candidates.begin(), candidates.end(), *id);
      if (!is_member) ++kept;
      if (is_member && own_begin <= id && id < own_end)
        members[num_members++] = static_cast<std::int32_t>(id - own_begin);
    }
    tile.member_end = num_members;
    if (kept > 0) {
      tile.raise =
          static_cast<float>(std::log(static_cast<double>(vocab_size - candidates.size) / static_cast<double>(kept)));
    }
    std::fill(tile_of.begin() + tile.token_begin, tile_of.begin() + tile.token_end, static_cast<std::int32_t>(i));
  }
  tiles_ = tiles;
  tile_of_ = tile_of;
  members_ = members.slice(0, num_members);
}

void SampledNegatives::set_members(const Tile& tile, VectorView<float> row, float value) const {
  for (std::int64_t i = tile.member_begin; i < tile.member_end; ++i) row[members_[i]] = value;
}

template <class T>
void SampledNegatives::forward(const Context& context, const LossBatch& batch, MatrixView<const float> hidden,
                               MatrixView<const T> weight, Range own, std::int64_t vocab_size,
                               const LossOptions& options, VectorView<TokenStatistics> local,
                               MatrixView<float> accumulator) {
  options_ = options;
  own_ = own;
  logits_ = {};
  if (batch.negatives.empty()) return;
  find_members(context, batch, own, vocab_size);
  logits_ = context.arena.matrix<float>(hidden.rows, ids_.size, "logits of sampled negatives");
  if (empty()) return;

  const Arena::Scope scope(context.arena);
  const CpuStream& stream = context.stream.cpu();
  const MatrixView<const float> rows = gather_float_rows<T>(context, weight, ids_, own.begin);
  const auto factors =
      context.arena.matrix<float>(std::min(kChunkTokens, hidden.rows), ids_.size, "factors of negatives");
  for (std::int64_t begin = 0; begin < hidden.rows; begin += kChunkTokens) {
    const std::int64_t count = std::min(kChunkTokens, hidden.rows - begin);
    block_logits(stream, hidden.row_range(begin, count), rows, options, logits_.row_range(begin, count));
    stream.parallel_for(count, kTokenGrain, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t t = begin + i;
        add_token(tiles_[tile_of_[t]], t, factors.row(i), local[t], accumulator.row(t));
      }
    });
    gemm<float, float>(stream, Transpose::kNo, Transpose::kNo, 1.0f, factors.row_range(0, count), rows, 1.0f,
                       accumulator.row_range(begin, count));
  }
}

/// Extends the token's statistics, brings its accumulator to the new maximum, and leaves exp(z - max) dz/dx in
/// `factors`.
void SampledNegatives::add_token(const Tile& tile, std::int64_t token, VectorView<float> factors,
                                 TokenStatistics& local, VectorView<float> accumulator) const {
  const VectorView<float> logits = logits_.row(token);
  if (num_kept(tile) == 0) {
    std::fill(factors.begin(), factors.end(), 0.0f);
    return;
  }
  set_members(tile, logits, -std::numeric_limits<float>::infinity());
  float max = 0.0f, sum_exp = 0.0f;
  REPRISE_SIMD_CALL(softmax_statistics, logits.data, logits.size, &max, &sum_exp);
  const float old_max = local.max;
  const bool had_candidates = local.sum_exp != 0.0f;
  merge_statistics(local, max + tile.raise, sum_exp);
  REPRISE_SIMD_CALL(finish_d_hidden, accumulator.data, accumulator.size,
                    had_candidates ? std::exp(old_max - local.max) : 0.0f, static_cast<const float*>(nullptr), 0.0f);
  std::copy(logits.begin(), logits.end(), factors.begin());
  REPRISE_SIMD_CALL(softmax_gradient, factors.data, factors.size, -1, local.max - tile.raise, 1.0f, 1.0f,
                    options_.logit_scale, options_.softcap);
  set_members(tile, factors, 0.0f);
}

void SampledNegatives::backward(const Context& context, MatrixView<const float> hidden,
                                const CombinedStatistics& statistics, VectorView<const float> weights,
                                MatrixView<float> d_weight) {
  if (empty()) return;
  const CpuStream& stream = context.stream.cpu();
  stream.parallel_for(hidden.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const Tile& tile = tiles_[tile_of_[t]];
      const VectorView<float> row = logits_.row(t);
      if (weights[t] == 0.0f || num_kept(tile) == 0) {
        std::fill(row.begin(), row.end(), 0.0f);
        continue;
      }
      REPRISE_SIMD_CALL(softmax_gradient, row.data, row.size, -1, statistics.max[t] - tile.raise,
                        statistics.inverse_sum[t], weights[t], options_.logit_scale, options_.softcap);
      set_members(tile, row, 0.0f);
    }
  });
  const Arena::Scope scope(context.arena);
  const auto d_rows = context.arena.matrix<float>(ids_.size, hidden.cols, "gradient of sampled negatives");
  gemm<float, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, logits_, hidden, 0.0f, d_rows);
  for (std::int64_t i = 0; i < ids_.size; ++i) {
    add<float, float>(stream, d_rows.row(i), d_weight.row(ids_[i] - own_.begin));
  }
}

template void SampledNegatives::forward<float>(const Context&, const LossBatch&, MatrixView<const float>,
                                               MatrixView<const float>, Range, std::int64_t, const LossOptions&,
                                               VectorView<TokenStatistics>, MatrixView<float>);
template void SampledNegatives::forward<BFloat16>(const Context&, const LossBatch&, MatrixView<const float>,
                                                  MatrixView<const BFloat16>, Range, std::int64_t, const LossOptions&,
                                                  VectorView<TokenStatistics>, MatrixView<float>);

}  // namespace reprise
