#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "loss/full_cross_entropy.hpp"
#include "loss/loss.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/softmax_simd.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 4;

/// One token's softmax inside and outside its candidates, on one rank.
struct SplitStatistics {
  TokenStatistics inside{-std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
  TokenStatistics outside{-std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
};

void add_logits(TokenStatistics& to, VectorView<const float> logits) {
  if (logits.empty()) return;
  float max = 0.0f, sum_exp = 0.0f;
  REPRISE_SIMD_CALL(softmax_statistics, logits.data, logits.size, &max, &sum_exp);
  merge_statistics(to, max, sum_exp);
}

/// Adds the logits of the ids [first_id, first_id + logits.size); consumes them.
void add_block(SplitStatistics& token, VectorView<const std::int32_t> candidates, std::int64_t first_id,
               VectorView<float> logits) {
  const auto* begin = std::lower_bound(candidates.begin(), candidates.end(), first_id);
  const auto* end = std::lower_bound(begin, candidates.end(), first_id + logits.size);
  std::vector<float> listed;
  for (const auto* id = begin; id != end; ++id) {
    listed.push_back(logits[*id - first_id]);
    logits[*id - first_id] = -std::numeric_limits<float>::infinity();
  }
  add_logits(token.inside, listed);
  if (std::ssize(listed) < logits.size) add_logits(token.outside, logits);
}

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

VectorView<const std::int32_t> candidates_of(const CandidateTiles& tiles, std::int64_t token) {
  const auto* above = std::upper_bound(tiles.token_begin.begin(), tiles.token_begin.end(), token);
  const std::int64_t tile = above - tiles.token_begin.begin() - 1;
  return tiles.ids.slice(tiles.id_begin[tile], tiles.id_begin[tile + 1] - tiles.id_begin[tile]);
}

/// This rank's part of every token of `hidden`.
template <class T>
void visit_vocabulary(const Context& context, MatrixView<const float> hidden, MatrixView<const T> weight, Range own,
                      const CandidateTiles& tiles, const LossOptions& options, VectorView<SplitStatistics> local) {
  const LogitBlocks blocks = plan_logit_blocks(hidden.rows, own.size());
  const CpuStream& stream = context.stream.cpu();
  for (std::int64_t first = 0; first < own.size(); first += blocks.ids) {
    const std::int64_t ids = std::min(blocks.ids, own.size() - first);
    const Arena::Scope scope(context.arena);
    const auto rows = as_float(context, weight.row_range(first, ids));
    for (std::int64_t begin = 0; begin < hidden.rows; begin += blocks.tokens) {
      const std::int64_t count = std::min(blocks.tokens, hidden.rows - begin);
      const Arena::Scope block_scope(context.arena);
      const auto logits = context.arena.matrix<float>(count, ids, "block of logits");
      block_logits(stream, hidden.row_range(begin, count), rows, options, logits);
      stream.parallel_for(count, kTokenGrain, [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) {
          add_block(local[begin + i], candidates_of(tiles, begin + i), own.begin + first, logits.row(i));
        }
      });
    }
  }
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
  std::fill(local.begin(), local.end(), SplitStatistics{});
  visit_vocabulary<T>(context, as_float(context, selected.hidden()), weight, vocab.ids(context.groups.tp_rank()),
                      batch.tiles, options, local);

  const int ranks = context.groups.tp_size();
  constexpr std::int64_t kFloats = sizeof(SplitStatistics) / sizeof(float);
  const auto all = context.arena.vector<SplitStatistics>(tokens * ranks, "the same of all ranks");
  context.groups.tp->all_gather<float>(context.stream, {reinterpret_cast<const float*>(local.data), kFloats * tokens},
                                       {reinterpret_cast<float*>(all.data), kFloats * tokens * ranks});
  double mass = 0.0;
  std::vector<SplitStatistics> parts(static_cast<std::size_t>(ranks));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (int r = 0; r < ranks; ++r) parts[static_cast<std::size_t>(r)] = all[r * tokens + t];
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
