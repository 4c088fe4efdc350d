#include "loss/full_cross_entropy.hpp"

#include <algorithm>
#include <limits>

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/softmax_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kBlockTokens = 1024;
constexpr std::int64_t kBlockLogits = std::int64_t{1} << 20;
constexpr std::int64_t kMinBlockIds = 512;
constexpr std::int64_t kKeptLogits = std::int64_t{16} << 20;  // 64 MiB
constexpr std::int64_t kTokenGrain = 16;

}  // namespace

LogitBlocks plan_logit_blocks(std::int64_t tokens, std::int64_t ids) {
  LogitBlocks blocks;
  blocks.tokens = std::clamp<std::int64_t>(tokens, 1, kBlockTokens);
  blocks.ids = std::clamp<std::int64_t>(kBlockLogits / blocks.tokens, kMinBlockIds, std::max(ids, kMinBlockIds));
  blocks.ids = std::min(blocks.ids, std::max<std::int64_t>(ids, 1));
  blocks.kept = tokens * ids <= kKeptLogits;
  return blocks;
}

void block_logits(const CpuStream& stream, MatrixView<const float> hidden, MatrixView<const float> rows,
                  const LossOptions& options, MatrixView<float> logits) {
  gemm<float, float>(stream, Transpose::kNo, Transpose::kYes, options.logit_scale, hidden, rows, 0.0f, logits);
  if (options.softcap == 0.0f) return;
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    const auto part = logits.row_range(begin, end - begin);
    REPRISE_SIMD_CALL(softcap_logits, part.data, part.size(), options.softcap);
  });
}

/// Tokens [token_begin, ...) x ids [id_begin, ...) (counted from this rank's first id).
template <class T>
struct FullCrossEntropy<T>::Block {
  std::int64_t token_begin, id_begin;
  MatrixView<const float> hidden;  ///< [tokens of the block, D]
  MatrixView<const float> rows;    ///< [ids of the block, D]
  MatrixView<float> logits;        ///< [tokens of the block, ids of the block]

  /// Column of token t's gold, or -1.
  [[nodiscard]] std::int64_t gold_column(std::int64_t gold, std::int64_t first_id) const {
    const std::int64_t column = gold - first_id - id_begin;
    return gold >= 0 && 0 <= column && column < logits.cols ? column : -1;
  }
};

template <class T>
FullCrossEntropy<T>::FullCrossEntropy(const VocabPartition& vocab, const LossOptions& options)
    : vocab_(vocab), options_(options) {
  check_loss_options(vocab, options);
}

/// Walks the blocks, vocabulary outside (a block of W is widened once), tokens inside, always in the same order.
template <class T>
template <class Body>
void FullCrossEntropy<T>::for_each_block(const Context& context, MatrixView<const T> weight, const Body& body) const {
  const std::int64_t tokens = hidden_.rows;
  std::int64_t kept = 0;
  for (std::int64_t first = 0; first < ids_.size(); first += blocks_.ids) {
    const std::int64_t ids = std::min(blocks_.ids, ids_.size() - first);
    const Arena::Scope scope(context.arena);
    const MatrixView<const float> rows = as_float(context, weight.row_range(first, ids));
    VectorView<float> scratch;
    if (!blocks_.kept) scratch = context.arena.vector<float>(std::min(tokens, blocks_.tokens) * ids, "block of logits");
    for (std::int64_t begin = 0; begin < tokens; begin += blocks_.tokens) {
      const std::int64_t count = std::min(blocks_.tokens, tokens - begin);
      const VectorView<float> place = blocks_.kept ? kept_logits_.slice(kept, count * ids) : scratch;
      body(Block{begin, first, hidden_.row_range(begin, count), rows, {place, count, ids}});
      kept += count * ids;
    }
  }
}

template <class T>
typename FullCrossEntropy<T>::Output FullCrossEntropy<T>::forward(const Context& context, MatrixView<const T> hidden,
                                                                  MatrixView<const T> weight, const LossBatch& batch) {
  check_head_shapes(context, vocab_, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, batch);
  check_targets(batch, total_rows, vocab_.vocab_size);
  selected_ = SelectedRows<T>(context, hidden, batch.row, total_rows);
  hidden_ = as_float(context, selected_.hidden());
  ids_ = vocab_.ids(context.groups.tp_rank());
  gold_ = copy_to_arena(context, batch.gold);
  weights_ = copy_effective_weights(context, batch);

  const std::int64_t tokens = selected_.size();
  const auto token_loss = context.arena.vector<float>(tokens, "token losses");
  blocks_ = plan_logit_blocks(tokens, ids_.size());
  if (blocks_.kept) kept_logits_ = context.arena.vector<float>(tokens * ids_.size(), "logits");
  const auto local = context.arena.vector<TokenStatistics>(tokens, "softmax statistics");
  std::fill(local.begin(), local.end(), TokenStatistics{-std::numeric_limits<float>::infinity(), 0.0f, 0.0f});

  const CpuStream& stream = context.stream.cpu();
  for_each_block(context, weight, [&](const Block& block) {
    block_logits(stream, block.hidden, block.rows, options_, block.logits);
    stream.parallel_for(block.logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const VectorView<const float> logits = block.logits.row(i);
        TokenStatistics& token = local[block.token_begin + i];
        float max = 0.0f, sum_exp = 0.0f;
        REPRISE_SIMD_CALL(softmax_statistics, logits.data, logits.size, &max, &sum_exp);
        merge_statistics(token, max, sum_exp);
        const std::int64_t column = block.gold_column(gold_[block.token_begin + i], ids_.begin);
        if (column >= 0) token.gold_logit = logits[column];
      }
    });
  });
  statistics_ = combine_statistics(context, vocab_, batch, local, token_loss);
  return summarize_losses<T>(batch, token_loss);
}

template <class T>
void FullCrossEntropy<T>::backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                                   MatrixView<float> d_weight) {
  check_weight_gradient(weight, d_weight);
  const Arena::Scope scope(context.arena);
  const CpuStream& stream = context.stream.cpu();
  const auto d_selected = context.arena.matrix<float>(hidden_.rows, hidden_.cols, "gradient of selected rows");
  fill(stream, d_selected.flat(), 0.0f);
  for_each_block(context, weight, [&](const Block& block) {
    if (!blocks_.kept) block_logits(stream, block.hidden, block.rows, options_, block.logits);
    backward_block(stream, block, d_selected, d_weight);
  });
  selected_.scatter_gradient(context, d_selected, d_hidden);
}

template <class T>
void FullCrossEntropy<T>::backward_block(const CpuStream& stream, const Block& block, MatrixView<float> d_selected,
                                         MatrixView<float> d_weight) const {
  stream.parallel_for(block.logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t t = block.token_begin + i;
      const VectorView<float> row = block.logits.row(i);
      if (weights_[t] == 0.0f) {
        std::fill(row.begin(), row.end(), 0.0f);
        continue;
      }
      REPRISE_SIMD_CALL(softmax_gradient, row.data, row.size, block.gold_column(gold_[t], ids_.begin),
                        statistics_.max[t], statistics_.inverse_sum[t], weights_[t], options_.logit_scale,
                        options_.softcap);
    }
  });
  const MatrixView<const float> delta = block.logits;
  gemm<float, float>(stream, Transpose::kNo, Transpose::kNo, 1.0f, delta, block.rows, 1.0f,
                     d_selected.row_range(block.token_begin, delta.rows));
  if (d_weight.data == nullptr) return;
  gemm<float, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, delta, block.hidden, 1.0f,
                     d_weight.row_range(block.id_begin, delta.cols));
}

template class FullCrossEntropy<float>;
template class FullCrossEntropy<BFloat16>;

}  // namespace reprise
