#include "launcher/target_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/transfer.hpp"
#include "loss/full_cross_entropy.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/split_statistics.hpp"

namespace reprise {

namespace {

template <class T>
VectorView<const T> place(const Context& context, VectorView<const T> host, std::string_view what) {
  const auto copy = context.arena.vector<T>(host.size, what);
  copy_to_device<T>(context.stream, host, copy);
  return copy;
}

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

/// Walks this rank's vocabulary in blocks. Operand: float on the CPU, T on a GPU.
template <class Operand, class T>
void visit_vocabulary(const Context& context, MatrixView<const Operand> hidden, MatrixView<const T> weight, Range own,
                      VectorView<const std::int32_t> gold, const TokenSets& sets, const LocalParts& parts) {
  const LogitBlocks blocks = plan_logit_blocks(hidden.rows, own.size(), default_logit_budget(!context.stream.is_cpu()));
  for (std::int64_t first = 0; first < own.size(); first += blocks.ids) {
    const std::int64_t ids = std::min(blocks.ids, own.size() - first);
    const Arena::Scope scope(context.arena);
    MatrixView<const Operand> rows;
    if constexpr (std::is_same_v<Operand, T>) {
      rows = weight.row_range(first, ids);
    } else {
      rows = as_float(context, weight.row_range(first, ids));
    }
    for (std::int64_t begin = 0; begin < hidden.rows; begin += blocks.tokens) {
      const std::int64_t count = std::min(blocks.tokens, hidden.rows - begin);
      const Arena::Scope block_scope(context.arena);
      const auto logits = context.arena.matrix<float>(count, ids, "block of logits");
      block_logits<Operand>(context.stream, hidden.row_range(begin, count), rows, {}, logits);
      add_statistics(context.stream, logits, gold.slice(begin, count), own.begin + first,
                     parts.all.slice(begin, count));
      if (parts.split.empty()) continue;
      add_split_statistics(context.stream, sets.tokens(begin, count), own.begin + first, logits,
                           parts.split.slice(begin, count));
    }
  }
}

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
    gather_rows<T>(context.stream, states, place<std::int32_t>(context, distinct.index, "targets"), repeated);
    states = repeated;
  }
  const auto gold = place(context, targets.gold, "gold tokens");
  TokenSets sets;
  LocalParts parts{context.arena.vector<TokenStatistics>(tokens, "softmax statistics"), {}};
  clear_statistics(context.stream, parts.all);
  if (has_sets) {
    sets = {place(context, targets.set_begin, "sets"), place(context, targets.set_end, "sets"),
            place(context, targets.ids, "sets")};
    parts.split = context.arena.vector<SplitStatistics>(tokens, "softmax inside and outside the sets");
    clear_statistics(context.stream, {reinterpret_cast<TokenStatistics*>(parts.split.data), 2 * tokens});
  }
  const Range own = vocab.ids(context.groups.tp_rank());
  if (context.stream.is_cpu()) {
    visit_vocabulary<float, T>(context, as_float(context, states), weight, own, gold, sets, parts);
  } else {
    visit_vocabulary<T, T>(context, states, weight, own, gold, sets, parts);
  }
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
