#include "loss/target_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/transfer.hpp"
#include "loss/logit_blocks.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/split_statistics.hpp"

namespace reprise {

namespace {

/// Rows that each occur once, ascending, and where each target's stands among them.
struct DistinctRows {
  std::vector<std::int32_t> rows, index;
  bool repeat = false;

  explicit DistinctRows(VectorView<const std::int32_t> wanted) : rows(wanted.begin(), wanted.end()) {
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    for (const std::int32_t row : wanted) {
      index.push_back(static_cast<std::int32_t>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin()));
    }
    repeat = !std::equal(rows.begin(), rows.end(), wanted.begin(), wanted.end());
  }
};

/// One rank's part of every token's softmax, on the device.
struct LocalParts {
  VectorView<TokenStatistics> all;
  VectorView<SplitStatistics> split;  ///< empty without sets
};

/// Logits as the sums over ranks see them: log sum exp of parts, in rank order and float64.
class LogSum {
 public:
  void add(double max, double sum_exp) {
    if (sum_exp == 0.0) return;
    if (sum_ == 0.0) max_ = max;
    const double top = std::max(max_, max);
    sum_ = sum_ * std::exp(max_ - top) + sum_exp * std::exp(max - top);
    max_ = top;
  }
  /// -inf: of nothing.
  [[nodiscard]] double value() const { return sum_ == 0.0 ? max_ : max_ + std::log(sum_); }
  [[nodiscard]] double max() const { return max_; }

 private:
  double max_ = -std::numeric_limits<double>::infinity(), sum_ = 0.0;
};

/// This rank's parts as words that travel: max, sum and gold's logit of a token, then those of inside and outside.
std::vector<double> words_of(const Context& context, const LocalParts& parts) {
  const auto all = on_host(context.stream, parts.all);
  const auto split = on_host(context.stream, parts.split);
  std::vector<double> words;
  const auto add = [&](const TokenStatistics& part) {
    words.insert(words.end(), {static_cast<double>(part.max), static_cast<double>(part.sum_exp),
                               static_cast<double>(part.gold_logit)});
  };
  for (std::int64_t t = 0; t < parts.all.size; ++t) {
    add(all.view()[t]);
    if (parts.split.empty()) continue;
    add(split.view()[t].inside);
    add(split.view()[t].outside);
  }
  return words;
}

TargetStatistics combine(const std::vector<double>& words, std::size_t per_token, const VocabPartition& vocab,
                         VectorView<const std::int32_t> gold) {
  constexpr std::size_t kPart = 3;
  const auto tokens = static_cast<std::size_t>(gold.size);
  TargetStatistics result;
  for (std::size_t t = 0; t < tokens; ++t) {
    LogSum all, outside;
    double gold_logit = 0.0;
    for (int r = 0; r < vocab.tp_size(); ++r) {
      const double* part = words.data() + (static_cast<std::size_t>(r) * tokens + t) * per_token;
      all.add(part[0], part[1]);
      const Range ids = vocab.ids(r);
      const std::int32_t id = gold[static_cast<std::int64_t>(t)];
      if (ids.begin <= id && id < ids.end) gold_logit = part[2];
      if (per_token > kPart) outside.add(part[2 * kPart], part[2 * kPart + 1]);
    }
    result.log_prob.push_back(static_cast<float>(gold_logit - all.value()));
    result.is_top.push_back(gold_logit >= all.max() ? 1 : 0);
    if (per_token > kPart) result.outside.push_back(static_cast<float>(std::exp(outside.value() - all.value())));
  }
  return result;
}

}  // namespace

template <class T>
TargetStatistics measure_targets(const Context& context, const Stream& host, MatrixView<const T> hidden,
                                 MatrixView<const T> weight, const VocabPartition& vocab,
                                 const MeasuredTargets& targets) {
  check_head_shapes(context, vocab, hidden, weight);
  const std::int64_t tokens = targets.row.size;
  const bool has_sets = !targets.set_begin.empty();
  REPRISE_CHECK(targets.gold.size == tokens && targets.set_begin.size == targets.set_end.size &&
                    (!has_sets || targets.set_begin.size == tokens),
                "{} golds and {} sets of {} targets", targets.gold.size, targets.set_begin.size, tokens);
  const Arena::Scope scope(context.arena);
  const DistinctRows distinct(targets.row);
  const SelectedRows<T> selected(context, hidden, distinct.rows, targets.total_rows);
  MatrixView<const T> states = selected.hidden();
  if (distinct.repeat) {
    const auto repeated = context.arena.matrix<T>(tokens, states.cols, "hidden states of the targets");
    gather_rows<T>(context.stream, states, context.arena.copy<std::int32_t>(distinct.index, "targets"), repeated);
    states = repeated;
  }
  const auto gold = context.arena.copy(targets.gold, "gold tokens");
  TokenSets sets;
  LocalParts parts{context.arena.vector<TokenStatistics>(tokens, "softmax statistics"), {}};
  clear_statistics(context.stream, parts.all);
  if (has_sets) {
    sets = {context.arena.copy(targets.set_begin, "sets"), context.arena.copy(targets.set_end, "sets"),
            context.arena.copy(targets.ids, "sets")};
    parts.split = context.arena.vector<SplitStatistics>(tokens, "softmax inside and outside the sets");
    clear_statistics(context.stream, {reinterpret_cast<TokenStatistics*>(parts.split.data), 2 * tokens});
  }
  const Range own = vocab.ids(context.groups.tp_rank());
  const LogitBlocks blocks = plan_logit_blocks(tokens, own.size(), default_logit_budget(!context.stream.is_cpu()));
  with_operand<T>(context.stream, [&]<class Operand>() {
    const auto operand = as_operand<Operand>(context, states);
    for_each_logit_block<Operand, T>(
        context, blocks, operand, weight.row_range(0, own.size()), {}, [&](const auto& block) {
          const std::int64_t begin = block.token_begin, count = block.logits.rows, first = own.begin + block.id_begin;
          block_logits<Operand>(context.stream, block.hidden, block.rows, {}, block.logits);
          add_statistics(context.stream, block.logits, gold.slice(begin, count), first, parts.all.slice(begin, count));
          if (!has_sets) return;
          add_split_statistics(context.stream, sets.tokens(begin, count), first, block.logits,
                               parts.split.slice(begin, count));
        });
  });
  const std::vector<double> words = words_of(context, parts);
  std::vector<double> all(words.size() * static_cast<std::size_t>(vocab.tp_size()));
  context.groups.tp->all_gather<double>(host, words, all);
  selected.check_finite(context);
  return combine(all, has_sets ? 9 : 3, vocab, targets.gold);
}

template TargetStatistics measure_targets(const Context&, const Stream&, MatrixView<const float>,
                                          MatrixView<const float>, const VocabPartition&, const MeasuredTargets&);
template TargetStatistics measure_targets(const Context&, const Stream&, MatrixView<const BFloat16>,
                                          MatrixView<const BFloat16>, const VocabPartition&, const MeasuredTargets&);

}  // namespace reprise
