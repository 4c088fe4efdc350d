#include "loss/full_cross_entropy.hpp"

#include <type_traits>

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "loss/loss_batch_check.hpp"

namespace reprise {

template <class T>
FullCrossEntropy<T>::FullCrossEntropy(const VocabPartition& vocab, const LossOptions& options,
                                      std::optional<LogitBudget> budget)
    : vocab_(vocab), options_(options), budget_(budget) {
  check_loss_options(vocab, options);
}

template <class T>
template <class Operand, class Body>
void FullCrossEntropy<T>::for_each_block(const Context& context, MatrixView<const T> weight, const Body& body) const {
  MatrixView<const Operand> hidden;
  if constexpr (std::is_same_v<Operand, float>) {
    hidden = hidden_.single;
  } else {
    hidden = hidden_.stored;
  }
  for_each_logit_block<Operand, T>(context, blocks_, hidden, weight.row_range(0, ids_.size()), kept_logits_, body);
}

template <class T>
typename FullCrossEntropy<T>::Output FullCrossEntropy<T>::launch_forward(const Context& context,
                                                                         MatrixView<const T> hidden,
                                                                         MatrixView<const T> weight,
                                                                         const LossBatch& batch) {
  check_head_shapes(context, vocab_, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, batch);
  check_targets(batch, total_rows, vocab_.vocab_size);
  selected_ = SelectedRows<T>(context, hidden, batch.row, total_rows);
  hidden_ = head_hidden(context, selected_);
  ids_ = vocab_.ids(context.groups.tp_rank());
  gold_ = context.arena.copy(batch.gold, "gold tokens");
  weights_ = copy_effective_weights(context, batch);

  const std::int64_t tokens = selected_.size();
  const auto token_loss = context.arena.vector<float>(tokens, "token losses");
  blocks_ = plan_logit_blocks(tokens, ids_.size(), budget_.value_or(default_logit_budget(!context.stream.is_cpu())));
  kept_logits_ = {};
  if (blocks_.kept) kept_logits_ = context.arena.vector<float>(tokens * ids_.size(), "logits");
  const auto local = context.arena.vector<TokenStatistics>(tokens, "softmax statistics");
  clear_statistics(context.stream, local);
  with_operand<T>(context.stream, [&]<class Operand>() { add_block_statistics<Operand>(context, weight, local); });
  statistics_ = combine_statistics(context, vocab_, batch, local, token_loss);
  return summarize_losses<T>(context, batch, selected_, weights_, token_loss);
}

template <class T>
template <class Operand>
void FullCrossEntropy<T>::add_block_statistics(const Context& context, MatrixView<const T> weight,
                                               VectorView<TokenStatistics> local) const {
  for_each_block<Operand>(context, weight, [&](const LogitBlock<Operand>& block) {
    const std::int64_t tokens = block.logits.rows;
    block_logits<Operand>(context.stream, block.hidden, block.rows, options_, block.logits);
    add_statistics(context.stream, block.logits, gold_.slice(block.token_begin, tokens), ids_.begin + block.id_begin,
                   local.slice(block.token_begin, tokens));
  });
}

template <class T>
void FullCrossEntropy<T>::backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                                   MatrixView<float> d_weight) {
  check_weight_gradient(weight, d_weight);
  const Arena::Scope scope(context.arena);
  const auto d_selected =
      context.arena.matrix<float>(selected_.size(), selected_.hidden().cols, "gradient of selected rows");
  fill(context.stream, d_selected.flat(), 0.0f);
  with_operand<T>(context.stream,
                  [&]<class Operand>() { add_block_gradients<Operand>(context, weight, d_selected, d_weight); });
  selected_.scatter_gradient(context, d_selected, d_hidden);
}

template <class T>
template <class Operand>
void FullCrossEntropy<T>::add_block_gradients(const Context& context, MatrixView<const T> weight,
                                              MatrixView<float> d_selected, MatrixView<float> d_weight) const {
  const Stream& stream = context.stream;
  const SoftmaxTargets targets{gold_, statistics_.max, statistics_.inverse_sum, weights_};
  for_each_block<Operand>(context, weight, [&](const LogitBlock<Operand>& block) {
    const std::int64_t tokens = block.logits.rows;
    if (!blocks_.kept) block_logits<Operand>(stream, block.hidden, block.rows, options_, block.logits);
    const Arena::Scope scope(context.arena);
    MatrixView<Operand> delta;
    if constexpr (std::is_same_v<Operand, float>) {
      delta = block.logits;
    } else {
      delta = context.arena.matrix<Operand>(tokens, block.logits.cols, "gradient of a block of logits");
    }
    softmax_gradient<Operand>(stream, block.logits, targets.slice(block.token_begin, tokens),
                              ids_.begin + block.id_begin, {options_.logit_scale, options_.softcap}, delta);
    gemm<Operand, float>(stream, Transpose::kNo, Transpose::kNo, 1.0f, delta, block.rows, 1.0f,
                         d_selected.row_range(block.token_begin, tokens));
    if (d_weight.data == nullptr) return;
    gemm<Operand, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, delta, block.hidden, 1.0f,
                         d_weight.row_range(block.id_begin, delta.cols));
  });
}

template class FullCrossEntropy<float>;
template class FullCrossEntropy<BFloat16>;

}  // namespace reprise
