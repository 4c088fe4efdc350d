#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

namespace reprise {

/// Non-owning, contiguous, trivially copyable; passed by value to functions and kernels. Const-ness is in T. Members
/// are constexpr so that device code may call them.
template <class T>
struct VectorView {
  T* data = nullptr;
  std::int64_t size = 0;

  VectorView() = default;
  constexpr VectorView(T* pointer, std::int64_t count) : data(pointer), size(count) {}
  VectorView(std::vector<std::remove_const_t<T>>& values)  // NOLINT(google-explicit-constructor)
      : data(values.data()), size(static_cast<std::int64_t>(values.size())) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  VectorView(const std::vector<U>& values)  // NOLINT(google-explicit-constructor)
      : data(values.data()), size(static_cast<std::int64_t>(values.size())) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  constexpr VectorView(VectorView<U> other)  // NOLINT(google-explicit-constructor)
      : data(other.data), size(other.size) {}

  constexpr T& operator[](std::int64_t i) const { return data[i]; }
  [[nodiscard]] constexpr VectorView slice(std::int64_t begin, std::int64_t count) const {
    return {data + begin, count};
  }
  [[nodiscard]] constexpr bool empty() const { return size == 0; }
  [[nodiscard]] constexpr T* begin() const { return data; }
  [[nodiscard]] constexpr T* end() const { return data + size; }
};

/// Row-major [rows, cols], contiguous.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  MatrixView() = default;
  constexpr MatrixView(T* pointer, std::int64_t row_count, std::int64_t col_count)
      : data(pointer), rows(row_count), cols(col_count) {}
  constexpr MatrixView(VectorView<T> flat, std::int64_t row_count, std::int64_t col_count)
      : data(flat.data), rows(row_count), cols(col_count) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  constexpr MatrixView(MatrixView<U> other)  // NOLINT(google-explicit-constructor)
      : data(other.data), rows(other.rows), cols(other.cols) {}

  constexpr T& operator()(std::int64_t row, std::int64_t col) const { return data[row * cols + col]; }
  [[nodiscard]] constexpr VectorView<T> row(std::int64_t index) const { return {data + index * cols, cols}; }
  [[nodiscard]] constexpr MatrixView row_range(std::int64_t begin, std::int64_t count) const {
    return {data + begin * cols, count, cols};
  }
  [[nodiscard]] constexpr VectorView<T> flat() const { return {data, rows * cols}; }
  [[nodiscard]] constexpr std::int64_t size() const { return rows * cols; }
};

}  // namespace reprise
