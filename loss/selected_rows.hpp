#pragma once

#include <cstdint>
#include <vector>

#include "loss/loss.hpp"

namespace reprise {

/// Rows of the micro-batch over all tp ranks: the batch's total_rows where given, else counted (under sequence
/// parallelism by one small all-gather). Checks it against this rank's rows.
[[nodiscard]] std::int64_t count_total_rows(const Context& context, std::int64_t own_rows, const LossBatch& batch);

/// x itself, or a float32 copy of a bfloat16 matrix in arena memory.
template <class T>
[[nodiscard]] MatrixView<const float> as_float(const Context& context, MatrixView<const T> x);

/// The rows of the final hidden states that the loss projects, compact, the same on every tp rank; and the way back for
/// their gradient. Only these rows travel.
template <class T>
class SelectedRows {
 public:
  SelectedRows() = default;

  /// Gathers `row` (strictly ascending in [0, total_rows)) of the micro-batch. Under sequence parallelism the rows come
  /// by one all-gather with uneven counts. Memory is the arena's. Throws Error(kNonFinite) naming token and row, on
  /// every rank, for a selected row that holds NaN or Inf.
  SelectedRows(const Context& context, MatrixView<const T> hidden, VectorView<const std::int32_t> row,
               std::int64_t total_rows);

  [[nodiscard]] MatrixView<const T> hidden() const { return hidden_; }  ///< [T, D]
  [[nodiscard]] std::int64_t size() const { return hidden_.rows; }

  /// d_hidden (forward's hidden's shape) = this rank's rows of the sum of `d_selected` [T, D] over the tp ranks; rows
  /// without a target are zero. One all-reduce in T, or under sequence parallelism one all-to-all in T, summed by the
  /// owner in float32 in rank order.
  void scatter_gradient(const Context& context, MatrixView<const float> d_selected, MatrixView<T> d_hidden) const;

 private:
  [[nodiscard]] Range own_tokens(int rank) const;
  void sum_by_owner(const Context& context, MatrixView<const T> partial, MatrixView<T> own) const;

  MatrixView<const T> hidden_;
  VectorView<const std::int32_t> own_row_;  // [own tokens] rows of this rank's hidden
  std::vector<std::int64_t> token_begin_;   // [tp + 1] selected tokens by owner; {0, T} without sequence parallelism
  std::int64_t own_rows_ = 0;               // rows of this rank's hidden
};

}  // namespace reprise
