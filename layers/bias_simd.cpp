#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

template <class S>
void add_rows(const S* bias, S* y, std::int64_t rows, std::int64_t cols) {
  for (std::int64_t row = 0; row < rows; ++row) {
    S* out = y + row * cols;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(out + c, load(out + c) + load(bias + c));
    if (c < cols) {
      store_partial(out + c, load_partial(out + c, cols - c) + load_partial(bias + c, cols - c), cols - c);
    }
  }
}

template <class S>
void sum_rows(const S* d_y, float* d_bias, std::int64_t rows, std::int64_t cols) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S* in = d_y + row * cols;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(d_bias + c, load(d_bias + c) + load(in + c));
    if (c < cols) {
      store_partial(d_bias + c, load_partial(d_bias + c, cols - c) + load_partial(in + c, cols - c), cols - c);
    }
  }
}

}  // namespace

void add_bias_rows(const float* bias, float* y, std::int64_t rows, std::int64_t cols) {
  add_rows(bias, y, rows, cols);
}
void add_bias_rows(const std::uint16_t* bias, std::uint16_t* y, std::int64_t rows, std::int64_t cols) {
  add_rows(bias, y, rows, cols);
}
void sum_bias_rows(const float* d_y, float* d_bias, std::int64_t rows, std::int64_t cols) {
  sum_rows(d_y, d_bias, rows, cols);
}
void sum_bias_rows(const std::uint16_t* d_y, float* d_bias, std::int64_t rows, std::int64_t cols) {
  sum_rows(d_y, d_bias, rows, cols);
}

}  // namespace reprise::REPRISE_SIMD
