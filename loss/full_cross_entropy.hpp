#pragma once

#include "loss/loss.hpp"
#include "loss/selected_rows.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

/// How T x V_local logits are cut: all of a block's logits live at once, the blocks only when they fit a budget.
struct LogitBlocks {
  std::int64_t tokens = 0;  ///< tokens per block
  std::int64_t ids = 0;     ///< vocabulary rows per block
  bool kept = false;        ///< forward keeps every block for backward, which otherwise computes them again
};
[[nodiscard]] LogitBlocks plan_logit_blocks(std::int64_t tokens, std::int64_t ids);

/// logits [tokens, ids of this block] = softcap(logit_scale h W^T) in float32. `hidden` and `rows` are float32.
void block_logits(const CpuStream& stream, MatrixView<const float> hidden, MatrixView<const float> rows,
                  const LossOptions& options, MatrixView<float> logits);

/// Cross-entropy over the whole vocabulary, in blocks of tokens x vocabulary rows by GEMM: memory is bounded by a block
/// (or by the budget below which all logits are kept), never T x V. Padded rows take no part.
/// Forward 2 T V D FLOP, backward 4 T V D, and 2 T V D more where the logits are computed again.
template <class T>
class FullCrossEntropy final : public HeadLoss<T> {
 public:
  using Output = typename HeadLoss<T>::Output;

  /// Throws Error(kUsage) as make_head_loss.
  FullCrossEntropy(const VocabPartition& vocab, const LossOptions& options);

  Output forward(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                 const LossBatch& batch) override;
  void backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                MatrixView<float> d_weight) override;

 private:
  struct Block;  // one block of logits in place
  template <class Body>
  void for_each_block(const Context& context, MatrixView<const T> weight, const Body& body) const;
  void backward_block(const CpuStream& stream, const Block& block, MatrixView<float> d_selected,
                      MatrixView<float> d_weight) const;

  VocabPartition vocab_;
  LossOptions options_;

  // What backward needs; valid until the arena is rewound.
  Range ids_;  // real vocabulary ids of this rank
  SelectedRows<T> selected_;
  MatrixView<const float> hidden_;       // [T, D] float32
  VectorView<const std::int32_t> gold_;  // [T]
  VectorView<const float> weights_;      // [T]
  CombinedStatistics statistics_;
  LogitBlocks blocks_;
  VectorView<float> kept_logits_;  // block by block
};

}  // namespace reprise
