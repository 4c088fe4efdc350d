#pragma once

#include <optional>

#include "loss/logit_blocks.hpp"
#include "loss/loss.hpp"
#include "loss/selected_rows.hpp"
#include "loss/softmax.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

/// Cross-entropy over the whole vocabulary, in blocks of tokens x vocabulary rows by GEMM: memory is bounded by a block
/// (or by the budget below which all logits are kept), never T x V. Padded rows take no part.
/// Forward 2 T V D FLOP, backward 4 T V D, and 2 T V D more where the logits are computed again.
/// The products take float32 operands; on a GPU, T's: there the deltas, whose logits and softmax are float32, are
/// rounded once to T.
template <class T>
class FullCrossEntropy final : public HeadLoss<T> {
 public:
  using Output = typename HeadLoss<T>::Output;

  /// Throws Error(kUsage) as make_head_loss. Without a budget: default_logit_budget of the stream.
  FullCrossEntropy(const VocabPartition& vocab, const LossOptions& options, std::optional<LogitBudget> budget = {});

  Output launch_forward(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                        const LossBatch& batch) override;
  void backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                MatrixView<float> d_weight) override;

 private:
  template <class Operand, class Body>
  void for_each_block(const Context& context, MatrixView<const T> weight, const Body& body) const;
  template <class Operand>
  void add_block_statistics(const Context& context, MatrixView<const T> weight,
                            VectorView<TokenStatistics> local) const;
  template <class Operand>
  void add_block_gradients(const Context& context, MatrixView<const T> weight, MatrixView<float> d_selected,
                           MatrixView<float> d_weight) const;

  VocabPartition vocab_;
  LossOptions options_;
  std::optional<LogitBudget> budget_;

  // What backward needs; valid until the arena is rewound.
  Range ids_;  // real vocabulary ids of this rank
  SelectedRows<T> selected_;
  HeadHidden<T> hidden_;
  VectorView<const std::int32_t> gold_;  // [T]
  VectorView<const float> weights_;      // [T]
  CombinedStatistics statistics_;
  LogitBlocks blocks_;
  VectorView<float> kept_logits_;  // block by block
};

}  // namespace reprise
