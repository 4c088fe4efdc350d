#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// to(row, to_col + c) = from(row, from_col + c) for c < width and every row; other elements of `to` stay.
template <class T>
void copy_columns(const CpuStream& stream, MatrixView<const T> from, std::int64_t from_col, MatrixView<T> to,
                  std::int64_t to_col, std::int64_t width);
template <class T>
void copy_columns(const CudaStream& stream, MatrixView<const T> from, std::int64_t from_col, MatrixView<T> to,
                  std::int64_t to_col, std::int64_t width);

/// to(rows[i], c) = from(i, from_col + c) for c < to.cols: the new keys or values of a cache. `rows` differ.
template <class T>
void copy_columns_to_rows(const CpuStream& stream, MatrixView<const T> from, std::int64_t from_col,
                          VectorView<const std::int32_t> rows, MatrixView<T> to);
template <class T>
void copy_columns_to_rows(const CudaStream& stream, MatrixView<const T> from, std::int64_t from_col,
                          VectorView<const std::int32_t> rows, MatrixView<T> to);

template <class T>
void copy_columns(const Stream& stream, MatrixView<const T> from, std::int64_t from_col, MatrixView<T> to,
                  std::int64_t to_col, std::int64_t width) {
  stream.visit([&](const auto& device) { copy_columns<T>(device, from, from_col, to, to_col, width); });
}
template <class T>
void copy_columns_to_rows(const Stream& stream, MatrixView<const T> from, std::int64_t from_col,
                          VectorView<const std::int32_t> rows, MatrixView<T> to) {
  stream.visit([&](const auto& device) { copy_columns_to_rows<T>(device, from, from_col, rows, to); });
}

}  // namespace reprise
