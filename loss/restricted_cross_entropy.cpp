#include "loss/restricted_cross_entropy.hpp"

#include <type_traits>

#include "loss/loss_batch_check.hpp"
#include "loss/restricted_head.hpp"

namespace reprise {

template <class T>
RestrictedCrossEntropy<T>::RestrictedCrossEntropy(Normalization normalization, const VocabPartition& vocab,
                                                  const LossOptions& options)
    : normalization_(normalization), vocab_(vocab), options_(options) {
  check_loss_options(vocab, options);
}

template <class T>
typename RestrictedCrossEntropy<T>::Output RestrictedCrossEntropy<T>::launch_forward(const Context& context,
                                                                                     MatrixView<const T> hidden,
                                                                                     MatrixView<const T> weight,
                                                                                     const LossBatch& batch) {
  check_head_shapes(context, vocab_, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, batch);
  check_targets(batch, total_rows, vocab_.vocab_size);
  check_candidates(batch, vocab_.vocab_size, normalization_);
  selected_ = SelectedRows<T>(context, hidden, batch.row, total_rows);
  hidden_ = head_hidden(context, selected_);
  host_arrays_.reset(context.stream);
  gold_ = context.arena.copy(batch.gold, "gold tokens");
  weights_ = copy_effective_weights(context, batch);

  const std::int64_t tokens = selected_.size();
  const Range own = vocab_.ids(context.groups.tp_rank());
  candidates_ = find_local_candidates(context, batch.tiles, own, host_arrays_);
  logits_ = context.arena.vector<float>(candidates_.num_logits, "candidate logits");
  accumulator_ = context.arena.matrix<float>(tokens, hidden.cols, "unnormalised gradient of hidden states");
  const auto token_loss = context.arena.vector<float>(tokens, "token losses");
  const auto local = context.arena.vector<TokenStatistics>(tokens, "softmax statistics");
  local_ = local;

  gold_logits_ = find_gold(context, batch);
  visit_candidates<T>(context, host_arrays_, {hidden_, weight, candidates_, rule(), logits_, accumulator_, local});
  read_gold_logits(context.stream, gold_logits_, logits_, local);
  negatives_.forward<T>(context, batch, hidden_, weight, own, vocab_.vocab_size, options_, local, accumulator_);
  statistics_ = combine_statistics(context, vocab_, batch, local_, token_loss);
  has_plan_ = batch.needs_weight_gradient;
  if (batch.needs_weight_gradient) gradient_.plan<T>(context, candidates_, host_arrays_);
  return summarize_losses<T>(context, batch, selected_, weights_, token_loss);
}

template <class T>
GoldLogits RestrictedCrossEntropy<T>::find_gold(const Context& context, const LossBatch& batch) {
  const auto at = host_arrays_.vector<std::int64_t>(context.stream, batch.gold.size, "logits of gold");
  for (const LocalTile& tile : candidates_.tiles) {
    for (std::int64_t t = tile.token_begin; t < tile.token_end; ++t) {
      const std::int64_t k = candidates_.position(tile, batch.gold[t]);
      at[t] = k < 0 ? -1 : tile.logits + k * tile.tokens() + (t - tile.token_begin);
    }
  }
  const auto device_at = host_arrays_.on_device<std::int64_t>(context.stream, at);
  host_arrays_.make_ready(context.stream);
  return {device_at, candidates_.own.begin};
}

template <class T>
void RestrictedCrossEntropy<T>::backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                                         MatrixView<float> d_weight) {
  check_weight_gradient(weight, d_weight);
  REPRISE_CHECK(d_weight.data == nullptr || has_plan_, "a gradient of W for a batch that needs none");
  {
    const Arena::Scope scope(context.arena);
    const MatrixView<T> d_selected = [&] {
      if constexpr (std::is_same_v<T, float>) {
        return accumulator_;
      } else {
        return context.arena.matrix<T>(accumulator_.rows, accumulator_.cols, "gradient of selected hidden states");
      }
    }();
    finish_d_selected<T>(context.stream, targets(), local_, gold_logits_, rule(), weight, accumulator_, d_selected);
    selected_.scatter_rounded_gradient(context, d_selected, d_hidden);
  }
  if (d_weight.data == nullptr) return;
  make_deltas(context.stream, candidates_.device_tiles, targets(), local_, gold_logits_, rule(), logits_);
  gradient_.add<T>(context, candidates_, logits_, hidden_, d_weight);
  negatives_.backward<T>(context, hidden_, statistics_, weights_, d_weight);
}

template class RestrictedCrossEntropy<float>;
template class RestrictedCrossEntropy<BFloat16>;

}  // namespace reprise
