#include "loss/sampled_negatives.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "loss/add_rows.hpp"
#include "loss/logit_blocks.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kChunkTokens = 1024;
constexpr std::int64_t kAlignedColumns = 8;  // of products on a GPU, whose rows should start at 16 bytes

template <class T>
MatrixView<const float> gather_float_rows(const Context& context, MatrixView<const T> weight,
                                          VectorView<const std::int32_t> index) {
  const auto rows = context.arena.matrix<float>(index.size, weight.cols, "rows of sampled negatives");
  for (std::int64_t i = 0; i < index.size; ++i) cast<float, T>(context.stream, weight.row(index[i]), rows.row(i));
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
  std::vector<std::int32_t> rows;
  for (const auto* id = own_begin; id != own_end; ++id) rows.push_back(static_cast<std::int32_t>(*id - own.begin));
  sets_.num_ids = own_end - own_begin;
  if (empty()) return;
  if (!context.stream.is_cpu())
    rows.resize(static_cast<std::size_t>(round_up(sets_.num_ids, kAlignedColumns)), rows[0]);

  std::vector<std::int32_t> index_of(static_cast<std::size_t>(vocab_size), -1);  // among the negatives
  for (std::int64_t i = 0; i < negatives.size; ++i) {
    index_of[static_cast<std::size_t>(negatives[i])] = static_cast<std::int32_t>(i);
  }
  const auto own_first = static_cast<std::int32_t>(own_begin - negatives.begin());
  const auto own_last = static_cast<std::int32_t>(own_end - negatives.begin());
  std::vector<NegativeTile> tiles;
  std::vector<std::int32_t> tile_of, members;
  for (std::int64_t i = 0; i < batch.tiles.size(); ++i) {
    const auto candidates =
        batch.tiles.ids.slice(batch.tiles.id_begin[i], batch.tiles.id_begin[i + 1] - batch.tiles.id_begin[i]);
    NegativeTile tile{.member_begin = std::ssize(members)};
    std::int64_t kept = negatives.size;
    for (const std::int32_t id : candidates) {
      const std::int32_t index = index_of[static_cast<std::size_t>(id)];
      if (index < 0) continue;
      --kept;
      if (own_first <= index && index < own_last) members.push_back(index - own_first);
    }
    tile.member_end = std::ssize(members);
    if (kept > 0) {
      tile.raise =
          static_cast<float>(std::log(static_cast<double>(vocab_size - candidates.size) / static_cast<double>(kept)));
    }
    tiles.push_back(tile);
    tile_of.resize(static_cast<std::size_t>(batch.tiles.token_begin[i + 1]), static_cast<std::int32_t>(i));
  }
  rows_ = context.arena.copy<std::int32_t>(rows, "rows of negatives");
  sets_.tiles = context.arena.copy<NegativeTile>(tiles, "tiles of negatives");
  sets_.tile_of = context.arena.copy<std::int32_t>(tile_of, "tiles of tokens");
  sets_.members = context.arena.copy<std::int32_t>(members, "negatives among candidates");
}

template <class T>
void SampledNegatives::forward(const Context& context, const LossBatch& batch, const HeadHidden<T>& hidden,
                               MatrixView<const T> weight, Range own, std::int64_t vocab_size,
                               const LossOptions& options, VectorView<TokenStatistics> local,
                               MatrixView<float> accumulator) {
  rule_ = {options.logit_scale, options.softcap};
  sets_ = {};
  if (batch.negatives.empty()) return;
  find_members(context, batch, own, vocab_size);
  if (empty()) return;
  logits_ = context.arena.matrix<float>(batch.row.size, rows_.size, "logits of sampled negatives");

  const Arena::Scope scope(context.arena);
  if (context.stream.is_cpu()) {
    visit<float>(context, hidden.single, gather_float_rows<T>(context, weight, rows_), options, local, accumulator);
  } else {
    const auto rows = context.arena.matrix<T>(rows_.size, weight.cols, "rows of sampled negatives");
    gather_rows<T>(context.stream, weight, rows_, rows);
    visit<T>(context, hidden.stored, rows, options, local, accumulator);
  }
}

template <class Operand>
void SampledNegatives::visit(const Context& context, MatrixView<const Operand> hidden, MatrixView<const Operand> rows,
                             const LossOptions& options, VectorView<TokenStatistics> local,
                             MatrixView<float> accumulator) const {
  const auto factors =
      context.arena.matrix<Operand>(std::min(kChunkTokens, hidden.rows), rows.rows, "factors of negatives");
  for (std::int64_t begin = 0; begin < hidden.rows; begin += kChunkTokens) {
    const std::int64_t count = std::min(kChunkTokens, hidden.rows - begin);
    const auto logits = logits_.row_range(begin, count);
    const auto sums = accumulator.row_range(begin, count);
    const auto part = factors.row_range(0, count);
    block_logits<Operand>(context.stream, hidden.row_range(begin, count), rows, options, logits);
    add_negatives<Operand>(context.stream, sets_.tokens(begin, count), rule_, logits, local.slice(begin, count), sums,
                           part);
    gemm<Operand, float>(context.stream, Transpose::kNo, Transpose::kNo, 1.0f, part, rows, 1.0f, sums);
  }
}

template <class T>
void SampledNegatives::backward(const Context& context, const HeadHidden<T>& hidden,
                                const CombinedStatistics& statistics, VectorView<const float> weights,
                                MatrixView<float> d_weight) {
  if (empty()) return;
  const SoftmaxTargets targets{{}, statistics.max, statistics.inverse_sum, weights};
  if (context.stream.is_cpu()) {
    add_gradient<float>(context, hidden.single, targets, d_weight);
  } else {
    add_gradient<T>(context, hidden.stored, targets, d_weight);
  }
}

template <class Operand>
void SampledNegatives::add_gradient(const Context& context, MatrixView<const Operand> hidden,
                                    const SoftmaxTargets& targets, MatrixView<float> d_weight) const {
  const Arena::Scope scope(context.arena);
  MatrixView<Operand> deltas;
  if constexpr (std::is_same_v<Operand, float>) {
    deltas = logits_;
  } else {
    deltas = context.arena.matrix<Operand>(logits_.rows, logits_.cols, "gradient of negatives' logits");
  }
  negative_gradient<Operand>(context.stream, sets_, rule_, targets, logits_, deltas);
  const auto d_rows = context.arena.matrix<float>(rows_.size, hidden.cols, "gradient of sampled negatives");
  gemm<Operand, float>(context.stream, Transpose::kYes, Transpose::kNo, 1.0f, deltas, hidden, 0.0f, d_rows);
  add_rows(context.stream, d_rows.row_range(0, sets_.num_ids), rows_.slice(0, sets_.num_ids), d_weight);
}

#define REPRISE_INSTANTIATE(T)                                                                                 \
  template void SampledNegatives::forward<T>(const Context&, const LossBatch&, const HeadHidden<T>&,           \
                                             MatrixView<const T>, Range, std::int64_t, const LossOptions&,     \
                                             VectorView<TokenStatistics>, MatrixView<float>);                  \
  template void SampledNegatives::backward<T>(const Context&, const HeadHidden<T>&, const CombinedStatistics&, \
                                              VectorView<const float>, MatrixView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
