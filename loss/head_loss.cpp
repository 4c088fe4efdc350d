#include <memory>

#include "core/error.hpp"
#include "loss/full_cross_entropy.hpp"
#include "loss/loss.hpp"

namespace reprise {

template <class T>
std::unique_ptr<HeadLoss<T>> make_head_loss(Normalization normalization, const VocabPartition& vocab,
                                            const LossOptions& options) {
  require(normalization == Normalization::kFull, ErrorKind::kUsage,
          "replay.normalization: only \"full\" is in this build");
  return std::make_unique<FullCrossEntropy<T>>(vocab, options);
}

template std::unique_ptr<HeadLoss<float>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);
template std::unique_ptr<HeadLoss<BFloat16>> make_head_loss(Normalization, const VocabPartition&, const LossOptions&);

}  // namespace reprise
