#include "layers/copy_columns.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace reprise {

template <class T>
void copy_columns(const CpuStream& stream, MatrixView<const T> from, std::int64_t from_col, MatrixView<T> to,
                  std::int64_t to_col, std::int64_t width) {
  REPRISE_CHECK(from.rows == to.rows && from_col + width <= from.cols && to_col + width <= to.cols,
                "columns [{}, {}) of [{}, {}] to column {} of [{}, {}]", from_col, from_col + width, from.rows,
                from.cols, to_col, to.rows, to.cols);
  stream.parallel_for(from.rows, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::copy_n(from.row(row).data + from_col, width, to.row(row).data + to_col);
    }
  });
}

template <class T>
void copy_columns_to_rows(const CpuStream& stream, MatrixView<const T> from, std::int64_t from_col,
                          VectorView<const std::int32_t> rows, MatrixView<T> to) {
  REPRISE_CHECK(rows.size == from.rows && from_col + to.cols <= from.cols, "columns {} + {} of [{}, {}] to {} rows",
                from_col, to.cols, from.rows, from.cols, rows.size);
  stream.parallel_for(from.rows, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::copy_n(from.row(row).data + from_col, to.cols, to.row(rows[row]).data);
    }
  });
}

#define REPRISE_INSTANTIATE(T)                                                                                    \
  template void copy_columns<T>(const CpuStream&, MatrixView<const T>, std::int64_t, MatrixView<T>, std::int64_t, \
                                std::int64_t);                                                                    \
  template void copy_columns_to_rows<T>(const CpuStream&, MatrixView<const T>, std::int64_t,                      \
                                        VectorView<const std::int32_t>, MatrixView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
