#pragma once

#include "core/host_arrays.hpp"
#include "loss/candidate_gradient.hpp"
#include "loss/candidate_index.hpp"
#include "loss/head_gradient.hpp"
#include "loss/loss.hpp"
#include "loss/sampled_negatives.hpp"
#include "loss/selected_rows.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

/// Cross-entropy over the candidates of each token's tile (kToken is tiles of one token), without forming any other
/// logit.
///
/// Forward visits each listed row of W once per tile: logits, running max and sum, and the unnormalised gradient
/// A_t = sum_k exp(z_tk - m_t) dz/dx W_k of the same visit. After the one all-gather of (m, sum, gold logit) backward
/// only scales: dh_t = w_t (exp(m_t - M_t) / L_t A_t - dz/dx W_gold), then dW row by row.
/// Arena memory: logits of the candidates, and three or four [T, D] float32 buffers.
template <class T>
class RestrictedCrossEntropy final : public HeadLoss<T> {
 public:
  using Output = typename HeadLoss<T>::Output;

  /// kToken or kTile. Throws Error(kUsage) as make_head_loss.
  RestrictedCrossEntropy(Normalization normalization, const VocabPartition& vocab, const LossOptions& options);

  Output launch_forward(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                        const LossBatch& batch) override;
  void backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                MatrixView<float> d_weight) override;

 private:
  [[nodiscard]] GoldLogits find_gold(const Context& context, const LossBatch& batch);
  [[nodiscard]] SoftmaxTargets targets() const { return {gold_, statistics_.max, statistics_.inverse_sum, weights_}; }
  [[nodiscard]] LogitRule rule() const { return {options_.logit_scale, options_.softcap}; }

  Normalization normalization_;
  VocabPartition vocab_;
  LossOptions options_;

  // What backward needs; valid until the arena is rewound.
  SelectedRows<T> selected_;
  HeadHidden<T> hidden_;                 // [T, D]
  VectorView<const std::int32_t> gold_;  // [T]
  VectorView<const float> weights_;      // [T] 0 for ignored tokens
  HostArrays host_arrays_;
  bool has_plan_ = true;  // of gradient_
  LocalCandidates candidates_;
  GoldLogits gold_logits_;
  CandidateGradient gradient_;
  VectorView<float> logits_;                 // tile by tile [ids, tokens]
  MatrixView<float> accumulator_;            // [T, D]
  VectorView<const TokenStatistics> local_;  // [T]
  CombinedStatistics statistics_;
  SampledNegatives negatives_;
};

}  // namespace reprise
