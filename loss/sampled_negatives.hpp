#pragma once

#include <cstdint>
#include <vector>

#include "loss/loss.hpp"
#include "loss/negative_logits.hpp"
#include "loss/selected_rows.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

/// n sampled vocabulary rows that all tokens of a micro-batch share: a dense GEMM beside the candidates.
///
/// In a tile with candidates U the kept negatives are those outside U, n' of them over all ranks, each logit raised by
/// log((V - |U|) / n'): an estimate of what the whole vocabulary outside U adds to the partition function.
/// Softmax and gradient treat them as further candidates. Memory: [T, n] logits.
/// On a GPU with T = BFloat16 factors and deltas are rounded once to T, for the tensor cores.
class SampledNegatives {
 public:
  SampledNegatives() = default;

  /// Logits of this rank's negatives; adds them to `local` (max and sum) and to the unnormalised gradient of the hidden
  /// states, `accumulator` [T, D]. own: this rank's real ids.
  template <class T>
  void forward(const Context& context, const LossBatch& batch, const HeadHidden<T>& hidden, MatrixView<const T> weight,
               Range own, std::int64_t vocab_size, const LossOptions& options, VectorView<TokenStatistics> local,
               MatrixView<float> accumulator);

  /// d_weight += delta^T H on the negatives' rows. Consumes the logits.
  template <class T>
  void backward(const Context& context, const HeadHidden<T>& hidden, const CombinedStatistics& statistics,
                VectorView<const float> weights, MatrixView<float> d_weight);

  [[nodiscard]] bool empty() const { return sets_.num_ids == 0; }

 private:
  void find_members(const Context& context, const LossBatch& batch, Range own, std::int64_t vocab_size);
  template <class Operand>
  void visit(const Context& context, MatrixView<const Operand> hidden, MatrixView<const Operand> rows,
             const LossOptions& options, VectorView<TokenStatistics> local, MatrixView<float> accumulator) const;
  template <class Operand>
  void add_gradient(const Context& context, MatrixView<const Operand> hidden, const SoftmaxTargets& targets,
                    MatrixView<float> d_weight) const;

  LogitRule rule_;
  VectorView<const std::int32_t> rows_;  // [columns] rows of this rank's W; those beyond the negatives repeat one
  NegativeSets sets_;
  MatrixView<float> logits_;  // [T, columns], not raised
};

}  // namespace reprise
