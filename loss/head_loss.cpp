#include <memory>

#include "core/dtype.hpp"
#include "loss/full_cross_entropy.hpp"
#include "loss/loss.hpp"
#include "loss/restricted_cross_entropy.hpp"

namespace reprise {

template <class T>
std::unique_ptr<HeadLoss<T>> make_head_loss(Normalization normalization, const VocabPartition& vocab,
                                            const LossOptions& options) {
  if (normalization == Normalization::kFull) return std::make_unique<FullCrossEntropy<T>>(vocab, options);
  return std::make_unique<RestrictedCrossEntropy<T>>(normalization, vocab, options);
}

template std::unique_ptr<HeadLoss<float>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);
template std::unique_ptr<HeadLoss<BFloat16>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);

}  // namespace reprise
