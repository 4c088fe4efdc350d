#pragma once

#include <cstdint>

#include "loss/loss.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/softmax.hpp"

namespace reprise {

/// The statistics over all ranks, what a softmax needs in backward.
struct CombinedStatistics {
  VectorView<float> max;          ///< [T]
  VectorView<float> inverse_sum;  ///< [T] 1 / sum over all candidates of exp(z - max)
};

/// One all-gather of 3 float32 per token; combined in rank order, so every rank ends with the same bits. Writes
/// token_loss[t] = log sum exp - gold logit (0 for ignored tokens) and the sums of `output`; arena memory.
/// `local` [T] is this rank's part; gold's logit comes from the rank whose vocabulary shard holds it.
[[nodiscard]] CombinedStatistics combine_statistics(const Context& context, const VocabPartition& vocab,
                                                    const LossBatch& batch, VectorView<const TokenStatistics> local,
                                                    VectorView<float> token_loss);

/// sum w l, sum w and the count of tokens with w > 0; ignored tokens have weight 0. weights: copy_effective_weights.
/// sum w l is left on the device, in arena memory, with the first row that is not finite.
template <class T>
[[nodiscard]] typename HeadLoss<T>::Output summarize_losses(const Context& context, const LossBatch& batch,
                                                            const SelectedRows<T>& selected,
                                                            VectorView<const float> weights,
                                                            VectorView<float> token_loss) {
  typename HeadLoss<T>::Output output{.token_loss = token_loss};
  for (std::int64_t t = 0; t < batch.row.size; ++t) {
    const float weight = effective_weight(batch, t);
    if (weight == 0.0f) continue;
    output.weight_sum += static_cast<double>(weight);
    ++output.tokens;
  }
  const auto summary = context.arena.vector<LossSummary>(1, "loss summary");
  summarize_tokens(context.stream, token_loss, weights, selected.is_bad(), summary);
  output.summary = summary;
  return output;
}

}  // namespace reprise
