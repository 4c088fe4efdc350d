#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "loss/loss.hpp"

namespace reprise {

/// Rows of the micro-batch over all tp ranks: the batch's total_rows where given, else counted (under sequence
/// parallelism by one small all-gather). Checks it against this rank's rows.
[[nodiscard]] std::int64_t count_total_rows(const Context& context, std::int64_t own_rows, const LossBatch& batch);

/// x itself, or a float32 copy of a bfloat16 matrix in arena memory.
template <class T>
[[nodiscard]] MatrixView<const float> as_float(const Context& context, MatrixView<const T> x);

/// Error(kNonFinite) of token `token` of a batch.
[[noreturn]] void throw_bad_row(std::int64_t token, std::int32_t row);

/// The rows of the final hidden states that the loss projects, compact, the same on every tp rank; and the way back for
/// their gradient. Only these rows travel.
template <class T>
class SelectedRows {
 public:
  SelectedRows() = default;

  /// Gathers `row` (strictly ascending in [0, total_rows)) of the micro-batch. Under sequence parallelism the rows come
  /// by one all-gather with uneven counts. Memory is the arena's. On a CPU stream throws as check_finite does; on a
  /// GPU, whose results come later, the caller must call it, or look at `is_bad` (HeadLoss::forward does).
  SelectedRows(const Context& context, MatrixView<const T> hidden, VectorView<const std::int32_t> row,
               std::int64_t total_rows);

  [[nodiscard]] MatrixView<const T> hidden() const { return hidden_; }  ///< [T, D]
  [[nodiscard]] std::int64_t size() const { return hidden_.rows; }
  /// [T] 1 where a row holds NaN or Inf; the same on every tp rank.
  [[nodiscard]] VectorView<const std::int32_t> is_bad() const { return is_bad_; }
  /// Throws Error(kNonFinite) naming token and row, on every rank, for a row that holds NaN or Inf. Waits for the
  /// stream.
  void check_finite(const Context& context) const;

  /// d_hidden (forward's hidden's shape) = this rank's rows of the sum of `d_selected` [T, D] over the tp ranks; rows
  /// without a target are zero. One all-reduce in T, or under sequence parallelism one all-to-all in T, summed by the
  /// owner in float32 in rank order.
  void scatter_gradient(const Context& context, MatrixView<const float> d_selected, MatrixView<T> d_hidden) const;
  /// The same from a part that is rounded to T already; it is consumed.
  void scatter_rounded_gradient(const Context& context, MatrixView<T> d_selected, MatrixView<T> d_hidden) const;

 private:
  [[nodiscard]] Range own_tokens(int rank) const;
  void sum_by_owner(const Context& context, MatrixView<const T> partial, MatrixView<T> own) const;

  MatrixView<const T> hidden_;
  VectorView<const std::int32_t> is_bad_;   // [T]
  VectorView<const std::int32_t> own_row_;  // [own tokens] rows of this rank's hidden
  std::vector<std::int32_t> row_;           // [T] of the micro-batch, for messages
  std::vector<std::int64_t> token_begin_;   // [tp + 1] selected tokens by owner; {0, T} without sequence parallelism
  std::int64_t own_rows_ = 0;               // rows of this rank's hidden
};

/// The selected hidden states as kernels take them.
template <class T>
struct HeadHidden {
  MatrixView<const T> stored;      ///< [T, D]
  MatrixView<const float> single;  ///< the same in float32; empty on a GPU, whose products take T = BFloat16 as it is
};
template <class T>
[[nodiscard]] HeadHidden<T> head_hidden(const Context& context, const SelectedRows<T>& selected) {
  if (context.stream.is_cpu() || std::is_same_v<T, float>)
    return {selected.hidden(), as_float(context, selected.hidden())};
  return {selected.hidden(), {}};
}

}  // namespace reprise
