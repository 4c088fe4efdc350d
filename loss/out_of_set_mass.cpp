#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "loss/logit_blocks.hpp"
#include "loss/loss.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/split_statistics.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

namespace {

/// The share of the whole softmax that lies outside, from the parts of all ranks in rank order.
double outside_share(const std::vector<SplitStatistics>& parts) {
  double max = -std::numeric_limits<double>::infinity(), inside = 0.0, outside = 0.0;
  for (const SplitStatistics& part : parts) {
    if (part.inside.sum_exp != 0.0f) max = std::max(max, static_cast<double>(part.inside.max));
    if (part.outside.sum_exp != 0.0f) max = std::max(max, static_cast<double>(part.outside.max));
  }
  for (const SplitStatistics& part : parts) {
    const auto scaled = [&](const TokenStatistics& x) {
      return x.sum_exp == 0.0f ? 0.0 : static_cast<double>(x.sum_exp) * std::exp(static_cast<double>(x.max) - max);
    };
    inside += scaled(part.inside);
    outside += scaled(part.outside);
  }
  return outside / (inside + outside);
}

/// The sets of the first `tokens` tokens, on the device.
TokenSets copy_sets(const Context& context, const CandidateTiles& tiles, std::int64_t tokens) {
  std::vector<std::int64_t> begin, end;
  for (std::int64_t tile = 0; tile < tiles.size() && std::ssize(begin) < tokens; ++tile) {
    const auto covered = static_cast<std::size_t>(std::min(tokens, tiles.token_begin[tile + 1]));
    begin.resize(covered, tiles.id_begin[tile]);
    end.resize(covered, tiles.id_begin[tile + 1]);
  }
  const auto ids = tiles.ids.slice(0, end.empty() ? 0 : end.back());
  return {context.arena.copy<std::int64_t>(begin), context.arena.copy<std::int64_t>(end),
          context.arena.copy<std::int32_t>(ids, "candidates")};
}

}  // namespace

template <class T>
std::pair<double, double> out_of_set_mass(const Context& context, MatrixView<const T> hidden,
                                          MatrixView<const T> weight, const LossBatch& batch,
                                          const VocabPartition& vocab, const LossOptions& options,
                                          std::int64_t max_tokens) {
  check_loss_options(vocab, options);
  check_head_shapes(context, vocab, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, batch);
  check_targets(batch, total_rows, vocab.vocab_size);
  check_candidates(batch, vocab.vocab_size, Normalization::kTile);

  const Arena::Scope scope(context.arena);
  const std::int64_t tokens = std::min(max_tokens, batch.row.size);
  const SelectedRows<T> selected(context, hidden, batch.row.slice(0, tokens), total_rows);
  const auto local = context.arena.vector<SplitStatistics>(tokens, "softmax inside and outside the candidates");
  clear_statistics(context.stream, {reinterpret_cast<TokenStatistics*>(local.data), 2 * tokens});
  const TokenSets sets = copy_sets(context, batch.tiles, tokens);
  const Range own = vocab.ids(context.groups.tp_rank());
  const LogitBlocks blocks = plan_logit_blocks(tokens, own.size(), default_logit_budget(!context.stream.is_cpu()));
  with_operand<T>(context.stream, [&]<class Operand>() {
    const auto operand = as_operand<Operand>(context, selected.hidden());
    for_each_logit_block<Operand, T>(
        context, blocks, operand, weight.row_range(0, own.size()), {}, [&](const auto& block) {
          block_logits<Operand>(context.stream, block.hidden, block.rows, options, block.logits);
          add_split_statistics(context.stream, sets.tokens(block.token_begin, block.logits.rows),
                               own.begin + block.id_begin, block.logits,
                               local.slice(block.token_begin, block.logits.rows));
        });
  });

  const int ranks = context.groups.tp_size();
  constexpr std::int64_t kFloats = sizeof(SplitStatistics) / sizeof(float);
  const auto gathered = context.arena.vector<SplitStatistics>(tokens * ranks, "the same of all ranks");
  context.groups.tp->all_gather<float>(context.stream, {reinterpret_cast<const float*>(local.data), kFloats * tokens},
                                       {reinterpret_cast<float*>(gathered.data), kFloats * tokens * ranks});
  const std::vector<SplitStatistics> all = to_host(context.stream, gathered);
  selected.check_finite(context);
  double mass = 0.0;
  std::vector<SplitStatistics> parts(static_cast<std::size_t>(ranks));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int r = 0; r < ranks; ++r) parts[static_cast<std::size_t>(r)] = all[static_cast<std::size_t>(r * tokens + t)];
    mass += outside_share(parts);
  }
  return {mass, static_cast<double>(tokens)};
}

template std::pair<double, double> out_of_set_mass(const Context&, MatrixView<const float>, MatrixView<const float>,
                                                   const LossBatch&, const VocabPartition&, const LossOptions&,
                                                   std::int64_t);
template std::pair<double, double> out_of_set_mass(const Context&, MatrixView<const BFloat16>,
                                                   MatrixView<const BFloat16>, const LossBatch&, const VocabPartition&,
                                                   const LossOptions&, std::int64_t);

}  // namespace reprise
