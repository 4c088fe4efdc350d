#include "loss/logit_blocks.hpp"

#include "core/gemm.hpp"
#include "loss/softmax.hpp"

namespace reprise {

LogitBudget default_logit_budget(bool gpu) {
  if (!gpu) return {};
  return {.block_tokens = 8192,
          .block_logits = std::int64_t{32} << 20,
          .min_block_ids = 4096,
          .kept_logits = std::int64_t{256} << 20};
}

LogitBlocks plan_logit_blocks(std::int64_t tokens, std::int64_t ids, const LogitBudget& budget) {
  LogitBlocks blocks;
  blocks.tokens = std::clamp<std::int64_t>(tokens, 1, budget.block_tokens);
  blocks.ids = std::clamp<std::int64_t>(budget.block_logits / blocks.tokens, budget.min_block_ids,
                                        std::max(ids, budget.min_block_ids));
  blocks.ids = std::min(blocks.ids, std::max<std::int64_t>(ids, 1));
  blocks.kept = tokens * ids <= budget.kept_logits;
  return blocks;
}

template <class Operand>
void block_logits(const Stream& stream, MatrixView<const Operand> hidden, MatrixView<const Operand> rows,
                  const LossOptions& options, MatrixView<float> logits) {
  gemm<Operand, float>(stream, Transpose::kNo, Transpose::kYes, options.logit_scale, hidden, rows, 0.0f, logits);
  cap_logits(stream, logits, options.softcap);
}
template void block_logits(const Stream&, MatrixView<const float>, MatrixView<const float>, const LossOptions&,
                           MatrixView<float>);
template void block_logits(const Stream&, MatrixView<const BFloat16>, MatrixView<const BFloat16>, const LossOptions&,
                           MatrixView<float>);

}  // namespace reprise
