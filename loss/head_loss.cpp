#include <memory>

#include "core/dtype.hpp"
#include "core/transfer.hpp"
#include "loss/full_cross_entropy.hpp"
#include "loss/loss.hpp"
#include "loss/restricted_cross_entropy.hpp"
#include "loss/selected_rows.hpp"

namespace reprise {

template <class T>
typename HeadLoss<T>::Output HeadLoss<T>::forward(const Context& context, MatrixView<const T> hidden,
                                                  MatrixView<const T> weight, const LossBatch& batch) {
  Output output = launch_forward(context, hidden, weight, batch);
  const LossSummary found = on_host(context.stream, output.summary).view()[0];
  if (found.bad_token >= 0) throw_bad_row(found.bad_token, batch.row[found.bad_token]);
  output.weighted_sum = found.weighted_sum;
  return output;
}

template class HeadLoss<float>;
template class HeadLoss<BFloat16>;

template <class T>
std::unique_ptr<HeadLoss<T>> make_head_loss(Normalization normalization, const VocabPartition& vocab,
                                            const LossOptions& options) {
  if (normalization == Normalization::kFull) return std::make_unique<FullCrossEntropy<T>>(vocab, options);
  return std::make_unique<RestrictedCrossEntropy<T>>(normalization, vocab, options);
}

template std::unique_ptr<HeadLoss<float>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);
template std::unique_ptr<HeadLoss<BFloat16>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);

}  // namespace reprise
