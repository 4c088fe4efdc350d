#include "loss/restricted_cross_entropy.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/math.hpp"
#include "loss/candidate_gradient.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/restricted_head_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kUnitTokens = 64;  // tokens of a tile that visit its rows together
constexpr std::int64_t kTokenGrain = 16;
constexpr std::int64_t kMaxWidth = 16;  // floats of the widest vector

const float* raw(const float* rows) {
  return rows;
}
const std::uint16_t* raw(const BFloat16* rows) {
  return reinterpret_cast<const std::uint16_t*>(rows);
}

VectorView<const TokenUnit> cut_units(const Context& context, const LocalCandidates& candidates) {
  std::int64_t count = 0;
  for (const auto& tile : candidates.tiles) count += (tile.tokens() + kUnitTokens - 1) / kUnitTokens;
  const auto units = context.arena.vector<TokenUnit>(count, "units of work");
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < candidates.tiles.size; ++i) {
    const auto& tile = candidates.tiles[i];
    for (std::int64_t t = tile.token_begin; t < tile.token_end; t += kUnitTokens) {
      units[next++] = {i, t, std::min(kUnitTokens, tile.token_end - t)};
    }
  }
  return units;
}

}  // namespace

template <class T>
RestrictedCrossEntropy<T>::RestrictedCrossEntropy(Normalization normalization, const VocabPartition& vocab,
                                                  const LossOptions& options)
    : normalization_(normalization), vocab_(vocab), options_(options) {
  check_loss_options(vocab, options);
}

template <class T>
float RestrictedCrossEntropy<T>::slope(float logit) const {
  const float ratio = options_.softcap > 0.0f ? logit / options_.softcap : 0.0f;
  return options_.logit_scale * (1.0f - ratio * ratio);
}

template <class T>
typename RestrictedCrossEntropy<T>::Output RestrictedCrossEntropy<T>::forward(const Context& context,
                                                                              MatrixView<const T> hidden,
                                                                              MatrixView<const T> weight,
                                                                              const LossBatch& batch) {
  check_head_shapes(context, vocab_, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, batch);
  check_targets(batch, total_rows, vocab_.vocab_size);
  check_candidates(batch, vocab_.vocab_size, normalization_);
  selected_ = SelectedRows<T>(context, hidden, batch.row, total_rows);
  hidden_ = head_hidden(context, selected_);
  host_arrays_.reset();
  gold_ = copy_to_arena(context, batch.gold);
  weights_ = copy_effective_weights(context, batch);

  const std::int64_t tokens = selected_.size();
  const Range own = vocab_.ids(context.groups.tp_rank());
  candidates_ = find_local_candidates(context, batch.tiles, own, host_arrays_);
  logits_ = context.arena.vector<float>(candidates_.num_logits, "candidate logits");
  accumulator_ = context.arena.matrix<float>(tokens, hidden.cols, "unnormalised gradient of hidden states");
  const auto token_loss = context.arena.vector<float>(tokens, "token losses");
  const auto local = context.arena.vector<TokenStatistics>(tokens, "softmax statistics");
  local_ = local;

  visit_candidates(context, weight, local);
  read_gold_logits(local);
  negatives_.forward<T>(context, batch, hidden_, weight, own, vocab_.vocab_size, options_, local, accumulator_);
  statistics_ = combine_statistics(context, vocab_, batch, local_, token_loss);
  gradient_.plan<T>(context, candidates_, host_arrays_);
  return summarize_losses<T>(context, batch, selected_, weights_, token_loss);
}

template <class T>
void RestrictedCrossEntropy<T>::visit_candidates(const Context& context, MatrixView<const T> weight,
                                                 VectorView<TokenStatistics> local) const {
  const Arena::Scope scope(context.arena);
  const VectorView<const TokenUnit> units = cut_units(context, candidates_);
  // A worker takes the next unit that is left; which worker it is changes nothing but the scratch.
  const std::int64_t workers = context.stream.cpu().num_threads();
  const auto scratch =
      context.arena.matrix<float>(workers, 2 * kUnitTokens * round_up(hidden_.single.cols, kMaxWidth), "units");
  std::atomic<std::int64_t> next = 0;
  context.stream.cpu().parallel_for(workers, 1, [&](std::int64_t worker, std::int64_t) {
    for (std::int64_t i = next++; i < units.size; i = next++) {
      visit_unit(units[i], weight, local, scratch.row(worker).data);
    }
  });
}

template <class T>
void RestrictedCrossEntropy<T>::visit_unit(const TokenUnit& unit, MatrixView<const T> weight,
                                           VectorView<TokenStatistics> local, float* scratch) const {
  const LocalCandidates::Tile& tile = candidates_.tiles[unit.tile];
  float max[kUnitTokens], sum_exp[kUnitTokens];
  using Storage = std::remove_cvref_t<decltype(*raw(weight.data))>;
  const HeadUnit<Storage> work{.hidden = hidden_.single.row(unit.token_begin).data,
                               .tokens = unit.tokens,
                               .depth = hidden_.single.cols,
                               .weight = raw(weight.data),
                               .ids = candidates_.ids.data + tile.id_begin,
                               .num_ids = tile.num_ids(),
                               .first_id = candidates_.own.begin,
                               .scale = options_.logit_scale,
                               .softcap = options_.softcap,
                               .logits = logits_.data + tile.logits + (unit.token_begin - tile.token_begin),
                               .logits_stride = tile.tokens(),
                               .accumulator = accumulator_.row(unit.token_begin).data,
                               .scratch = scratch,
                               .max = max,
                               .sum_exp = sum_exp};
  REPRISE_SIMD_CALL(head_forward, work);
  for (std::int64_t t = 0; t < unit.tokens; ++t) local[unit.token_begin + t] = {max[t], sum_exp[t], 0.0f};
}

template <class T>
void RestrictedCrossEntropy<T>::read_gold_logits(VectorView<TokenStatistics> local) const {
  for (const LocalCandidates::Tile& tile : candidates_.tiles) {
    for (std::int64_t t = tile.token_begin; t < tile.token_end; ++t) {
      const std::int64_t k = candidates_.position(tile, gold_[t]);
      if (k >= 0) local[t].gold_logit = logits_[tile.logits + k * tile.tokens() + (t - tile.token_begin)];
    }
  }
}

template <class T>
void RestrictedCrossEntropy<T>::backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                                         MatrixView<float> d_weight) {
  check_weight_gradient(weight, d_weight);
  finish_d_selected(context, weight);
  selected_.scatter_gradient(context, accumulator_, d_hidden);
  if (d_weight.data == nullptr) return;
  make_deltas(context);
  gradient_.add<T>(context, candidates_, logits_, hidden_, d_weight);
  negatives_.backward<T>(context, hidden_, statistics_, weights_, d_weight);
}

/// The accumulator becomes this rank's part of the gradient of the selected hidden states.
template <class T>
void RestrictedCrossEntropy<T>::finish_d_selected(const Context& context, MatrixView<const T> weight) const {
  context.stream.cpu().parallel_for(accumulator_.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const TokenStatistics& local = local_[t];
      const bool has_part = weights_[t] != 0.0f && local.sum_exp != 0.0f;
      const float factor =
          has_part ? weights_[t] * std::exp(local.max - statistics_.max[t]) * statistics_.inverse_sum[t] : 0.0f;
      const std::int64_t row = gold_[t] - candidates_.own.begin;
      const bool owns_gold = weights_[t] != 0.0f && 0 <= row && row < candidates_.own.size();
      REPRISE_SIMD_CALL(finish_d_hidden, accumulator_.row(t).data, accumulator_.cols, factor,
                        owns_gold ? raw(weight.row(row).data) : nullptr, weights_[t] * slope(local.gold_logit));
    }
  });
}

/// The candidates' logits become w (p - [gold]) dz/dx.
template <class T>
void RestrictedCrossEntropy<T>::make_deltas(const Context& context) const {
  context.stream.cpu().parallel_for(candidates_.tiles.size, 1, [&](std::int64_t index, std::int64_t) {
    const LocalCandidates::Tile& tile = candidates_.tiles[index];
    float* deltas = logits_.data + tile.logits;
    REPRISE_SIMD_CALL(head_delta, deltas, tile.num_ids(), tile.tokens(), statistics_.max.data + tile.token_begin,
                      statistics_.inverse_sum.data + tile.token_begin, weights_.data + tile.token_begin,
                      options_.logit_scale, options_.softcap);
    for (std::int64_t t = tile.token_begin; t < tile.token_end; ++t) {
      const std::int64_t k = weights_[t] == 0.0f ? -1 : candidates_.position(tile, gold_[t]);
      if (k >= 0) deltas[k * tile.tokens() + (t - tile.token_begin)] -= weights_[t] * slope(local_[t].gold_logit);
    }
  });
}

template class RestrictedCrossEntropy<float>;
template class RestrictedCrossEntropy<BFloat16>;

}  // namespace reprise
