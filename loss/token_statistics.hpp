#pragma once

#include <cstdint>

#include "loss/loss.hpp"
#include "loss/loss_batch_check.hpp"

namespace reprise {

/// What one rank knows of a token's softmax: over its candidates, max and sum of exp(z - max), and gold's logit where
/// it owns gold. A rank without candidates of the token holds (-inf, 0, 0).
struct TokenStatistics {
  float max;
  float sum_exp;
  float gold_logit;
};

/// The statistics over all ranks, what a softmax needs in backward.
struct CombinedStatistics {
  VectorView<float> max;          ///< [T]
  VectorView<float> inverse_sum;  ///< [T] 1 / sum over all candidates of exp(z - max)
};

/// Adds the part (max, sum_exp) of a token's candidates to `to`. NaN stays NaN.
void merge_statistics(TokenStatistics& to, float max, float sum_exp);

/// One all-gather of 3 float32 per token; combined in rank order, so every rank ends with the same bits. Writes
/// token_loss[t] = log sum exp - gold logit (0 for ignored tokens) and the sums of `output`; arena memory.
/// `local` [T] is this rank's part; gold's logit comes from the rank whose vocabulary shard holds it.
[[nodiscard]] CombinedStatistics combine_statistics(const Context& context, const VocabPartition& vocab,
                                                    const LossBatch& batch, VectorView<const TokenStatistics> local,
                                                    VectorView<float> token_loss);

/// sum w l, sum w and the count of tokens with w > 0; ignored tokens have weight 0.
template <class T>
[[nodiscard]] typename HeadLoss<T>::Output summarize_losses(const LossBatch& batch, VectorView<float> token_loss) {
  typename HeadLoss<T>::Output output{.token_loss = token_loss};
  for (std::int64_t t = 0; t < batch.row.size; ++t) {
    const float weight = effective_weight(batch, t);
    if (weight == 0.0f) continue;  // not even a NaN of a token without weight may enter the sums
    output.weighted_sum += static_cast<double>(weight) * static_cast<double>(token_loss[t]);
    output.weight_sum += static_cast<double>(weight);
    ++output.tokens;
  }
  return output;
}

}  // namespace reprise
