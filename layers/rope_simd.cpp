#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

template <class S>
REPRISE_SIMD_INLINE void rotate(S* first, S* second, const float* cos, const float* sin, float sign) {
  const Float a = load(first), b = load(second), c = load(cos), s = load(sin) * sign;
  store(first, a * c - b * s);
  store(second, b * c + a * s);
}

template <class S>
REPRISE_SIMD_INLINE void rotate_partial(S* first, S* second, const float* cos, const float* sin, float sign,
                                        std::int64_t n) {
  const Float a = load_partial(first, n), b = load_partial(second, n);
  const Float c = load_partial(cos, n), s = load_partial(sin, n) * sign;
  store_partial(first, a * c - b * s, n);
  store_partial(second, b * c + a * s, n);
}

template <class S>
void rotate_row_heads(const float* table, const std::int32_t* table_rows, S* x, std::int64_t rows, std::int64_t stride,
                      std::int64_t heads, std::int64_t head_dim, float sign) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t row = 0; row < rows; ++row) {
    const float *cos = table + table_rows[row] * head_dim, *sin = cos + half;
    for (std::int64_t head = 0; head < heads; ++head) {
      S *first = x + row * stride + head * head_dim, *second = first + half;
      std::int64_t c = 0;
      for (; c + kWidth <= half; c += kWidth) rotate(first + c, second + c, cos + c, sin + c, sign);
      if (c < half) rotate_partial(first + c, second + c, cos + c, sin + c, sign, half - c);
    }
  }
}

}  // namespace

void rotate_rows(const float* table, const std::int32_t* table_rows, float* x, std::int64_t rows, std::int64_t stride,
                 std::int64_t heads, std::int64_t head_dim, float sign) {
  rotate_row_heads(table, table_rows, x, rows, stride, heads, head_dim, sign);
}
void rotate_rows(const float* table, const std::int32_t* table_rows, std::uint16_t* x, std::int64_t rows,
                 std::int64_t stride, std::int64_t heads, std::int64_t head_dim, float sign) {
  rotate_row_heads(table, table_rows, x, rows, stride, heads, head_dim, sign);
}

}  // namespace reprise::REPRISE_SIMD
