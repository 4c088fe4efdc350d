#pragma once

#include <cstdint>

#include "core/error.hpp"
#include "loss/loss.hpp"

namespace reprise {

/// Throws Error(kData) that names token and id for rows, golds and weights that make no sense: rows not strictly
/// ascending in [0, total_rows), golds outside [0, vocab_size) other than -100, weights that are negative or not
/// finite. It looks at the batch alone, which is the same on every rank, so all ranks throw the same before any
/// collective.
void check_targets(const LossBatch& batch, std::int64_t total_rows, std::int64_t vocab_size);

/// The same for the candidates: tiles that do not cover the tokens, empty or unsorted sets, ids outside
/// [0, vocab_size), a gold outside its tile's set, negatives unsorted or out of range; for kToken also tiles of more
/// than one token.
void check_candidates(const LossBatch& batch, std::int64_t vocab_size, Normalization normalization);

/// Throws Error(kUsage) for bounds that do not tile [0, V) and for options that are out of range, by name.
void check_loss_options(const VocabPartition& vocab, const LossOptions& options);

inline constexpr std::int32_t kIgnoredGold = -100;

/// w_t, or 0 for an ignored token.
[[nodiscard]] inline float effective_weight(const LossBatch& batch, std::int64_t token) {
  return batch.gold[token] == kIgnoredGold ? 0.0f : batch.weight[token];
}

/// Invariants of the caller: hidden and weight agree with the partition; d_weight has weight's shape or is empty.
template <class T>
void check_head_shapes(const Context& context, const VocabPartition& vocab, MatrixView<const T> hidden,
                       MatrixView<const T> weight) {
  REPRISE_CHECK(vocab.tp_size() == context.groups.tp_size(), "{} vocabulary shards on {} ranks", vocab.tp_size(),
                context.groups.tp_size());
  const std::int64_t rows = vocab.rows(context.groups.tp_rank()).size();
  REPRISE_CHECK(weight.rows == rows && weight.cols == hidden.cols,
                "head weight [{}, {}] for {} vocabulary rows and hidden size {}", weight.rows, weight.cols, rows,
                hidden.cols);
}
template <class T>
void check_weight_gradient(MatrixView<const T> weight, MatrixView<float> d_weight) {
  REPRISE_CHECK(d_weight.data == nullptr || (d_weight.rows == weight.rows && d_weight.cols == weight.cols),
                "d_weight is [{}, {}], weight [{}, {}]", d_weight.rows, d_weight.cols, weight.rows, weight.cols);
}

/// In arena memory, so that backward does not depend on the life of the batch.
[[nodiscard]] VectorView<const float> copy_effective_weights(const Context& context, const LossBatch& batch);

}  // namespace reprise
