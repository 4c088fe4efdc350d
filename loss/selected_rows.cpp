#include "loss/selected_rows.hpp"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/transfer.hpp"
#include "loss/finite_rows.hpp"
#include "loss/loss_batch_check.hpp"

namespace reprise {

std::int64_t count_total_rows(const Context& context, std::int64_t own_rows, const LossBatch& batch) {
  if (!context.sequence_parallel) return own_rows;
  std::int64_t total_rows = batch.total_rows;
  if (total_rows < 0) {
    const Arena::Scope scope(context.arena);
    const auto own = context.arena.copy<std::int64_t>(std::vector<std::int64_t>{own_rows});
    const auto gathered = context.arena.vector<std::int64_t>(context.groups.tp_size(), "rows of all ranks");
    context.groups.tp->all_gather<std::int64_t>(context.stream, own, gathered);
    const std::vector<std::int64_t> all = to_host(context.stream, gathered);
    total_rows = std::accumulate(all.begin(), all.end(), std::int64_t{0});
  }
  const Range shard = even_shard(total_rows, context.groups.tp_size(), context.groups.tp_rank());
  REPRISE_CHECK(shard.size() == own_rows, "{} hidden rows where the shard of {} holds {}", own_rows, total_rows,
                shard.size());
  return total_rows;
}

template <class T>
MatrixView<const float> as_float(const Context& context, MatrixView<const T> x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    const auto copy = context.arena.matrix<float>(x.rows, x.cols, "float32 rows");
    cast<float, T>(context.stream, x.flat(), copy.flat());
    return copy;
  }
}
template MatrixView<const float> as_float(const Context&, MatrixView<const float>);
template MatrixView<const float> as_float(const Context&, MatrixView<const BFloat16>);

template <class T>
SelectedRows<T>::SelectedRows(const Context& context, MatrixView<const T> hidden, VectorView<const std::int32_t> row,
                              std::int64_t total_rows)
    : row_(row.begin(), row.end()), own_rows_(hidden.rows) {
  const int shards = context.sequence_parallel ? context.groups.tp_size() : 1;
  const int shard = context.sequence_parallel ? context.groups.tp_rank() : 0;
  token_begin_.assign(1, 0);
  for (int r = 0; r < shards; ++r) {
    const auto* end = std::lower_bound(row.begin(), row.end(), even_shard(total_rows, shards, r).end);
    token_begin_.push_back(end - row.begin());
  }

  const Range own = own_tokens(shard);
  const std::int64_t first_row = even_shard(total_rows, shards, shard).begin;
  std::vector<std::int32_t> own_row;
  for (std::int64_t t = own.begin; t < own.end; ++t) own_row.push_back(static_cast<std::int32_t>(row[t] - first_row));
  own_row_ = context.arena.copy<std::int32_t>(own_row, "selected rows");

  const auto selected = context.arena.matrix<T>(row.size, hidden.cols, "selected hidden states");
  const auto own_selected = selected.row_range(own.begin, own.size());
  gather_rows<T>(context.stream, hidden, own_row_, own_selected);
  if (context.sequence_parallel) {
    std::vector<std::int64_t> counts;
    for (int r = 0; r < shards; ++r) counts.push_back(own_tokens(r).size() * hidden.cols);
    context.groups.tp->all_gather<T>(context.stream, own_selected.flat(), selected.flat(), counts);
  }
  hidden_ = selected;
  const auto is_bad = context.arena.vector<std::int32_t>(row.size, "rows that are not finite");
  find_bad_rows<T>(context.stream, hidden_, is_bad);
  is_bad_ = is_bad;
  if (context.stream.is_cpu()) check_finite(context);
}

template <class T>
void SelectedRows<T>::check_finite(const Context& context) const {
  const std::vector<std::int32_t> is_bad = to_host(context.stream, is_bad_);
  const auto bad = std::find(is_bad.begin(), is_bad.end(), 1);
  if (bad == is_bad.end()) return;
  const std::int64_t token = bad - is_bad.begin();
  throw_bad_row(token, row_[static_cast<std::size_t>(token)]);
}

void throw_bad_row(std::int64_t token, std::int32_t row) {
  fail(ErrorKind::kNonFinite, "the hidden state of token {} (row {}) holds NaN or Inf", token, row);
}

template <class T>
Range SelectedRows<T>::own_tokens(int rank) const {
  return {token_begin_[static_cast<std::size_t>(rank)], token_begin_[static_cast<std::size_t>(rank) + 1]};
}

template <class T>
void SelectedRows<T>::scatter_gradient(const Context& context, MatrixView<const float> d_selected,
                                       MatrixView<T> d_hidden) const {
  const Arena::Scope scope(context.arena);
  const auto partial = context.arena.matrix<T>(d_selected.rows, d_selected.cols, "gradient of selected hidden states");
  cast<T, float>(context.stream, d_selected.flat(), partial.flat());
  scatter_rounded_gradient(context, partial, d_hidden);
}

template <class T>
void SelectedRows<T>::scatter_rounded_gradient(const Context& context, MatrixView<T> d_selected,
                                               MatrixView<T> d_hidden) const {
  REPRISE_CHECK(d_hidden.rows == own_rows_ && d_hidden.cols == hidden_.cols, "d_hidden is [{}, {}], hidden [{}, {}]",
                d_hidden.rows, d_hidden.cols, own_rows_, hidden_.cols);
  if (!context.sequence_parallel) {
    context.groups.tp->all_reduce(context.stream, d_selected.flat());
    scatter_rows<T>(context.stream, d_selected, own_row_, d_hidden);
    return;
  }
  const Arena::Scope scope(context.arena);
  const auto own = context.arena.matrix<T>(own_row_.size, hidden_.cols, "gradient of own selected rows");
  sum_by_owner(context, d_selected, own);
  scatter_rows<T>(context.stream, own, own_row_, d_hidden);
}

template <class T>
void SelectedRows<T>::sum_by_owner(const Context& context, MatrixView<const T> partial, MatrixView<T> own) const {
  const int ranks = context.groups.tp_size();
  std::vector<std::int64_t> send_counts;
  for (int r = 0; r < ranks; ++r) send_counts.push_back(own_tokens(r).size() * hidden_.cols);
  const std::vector<std::int64_t> receive_counts(static_cast<std::size_t>(ranks), own.size());
  const auto parts = context.arena.matrix<T>(ranks, own.size(), "parts of own selected rows");
  context.groups.tp->all_to_all<T>(context.stream, partial.flat(), send_counts, parts.flat(), receive_counts);

  const auto sum = context.arena.vector<float>(own.size(), "sum of own selected rows");
  cast<float, T>(context.stream, parts.row(0), sum);
  for (int r = 1; r < ranks; ++r) add<float, T>(context.stream, parts.row(r), sum);
  cast<T, float>(context.stream, sum, own.flat());
}

template class SelectedRows<float>;
template class SelectedRows<BFloat16>;

}  // namespace reprise
