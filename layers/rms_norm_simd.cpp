#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

/// f(column, lanes) for every vector of a row; only the last may have fewer than kWidth lanes.
template <class Whole, class Partial>
REPRISE_SIMD_INLINE void for_row(std::int64_t cols, Whole whole, Partial partial) {
  std::int64_t c = 0;
  for (; c + kWidth <= cols; c += kWidth) whole(c);
  if (c < cols) partial(c, cols - c);
}

template <class S>
void add_row(const S* x, const S* branch, S* sum, std::int64_t cols) {
  for_row(
      cols, [&](std::int64_t c) { store(sum + c, load(x + c) + load(branch + c)); },
      [&](std::int64_t c, std::int64_t n) {
        store_partial(sum + c, load_partial(x + c, n) + load_partial(branch + c, n), n);
      });
}

template <class S>
float mean_of_squares(const S* x, std::int64_t cols) {
  Float even = zero(), odd = zero();
  std::int64_t c = 0;
  for (; c + 2 * kWidth <= cols; c += 2 * kWidth) {
    const Float a = load(x + c), b = load(x + c + kWidth);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; c < cols; c += kWidth) {
    const Float a = load_partial(x + c, cols - c < kWidth ? cols - c : kWidth);
    even = fma(a, a, even);
  }
  return reduce_add(even + odd) / static_cast<float>(cols);
}

template <class S>
void norm_rows(const S* x, const S* branch, S* sum, const S* weight, float eps, S* y, float* rstd, std::int64_t rows,
               std::int64_t cols) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S* in = x + row * cols;
    if (branch != nullptr) {
      add_row(in, branch + row * cols, sum + row * cols, cols);
      in = sum + row * cols;
    }
    const float factor = 1.0f / __builtin_sqrtf(mean_of_squares(in, cols) + eps);
    rstd[row] = factor;
    S* out = y + row * cols;
    for_row(
        cols, [&](std::int64_t c) { store(out + c, load(in + c) * factor * load(weight + c)); },
        [&](std::int64_t c, std::int64_t n) {
          store_partial(out + c, load_partial(in + c, n) * factor * load_partial(weight + c, n), n);
        });
  }
}

template <class S>
void norm_backward_rows(const S* x, const S* weight, const float* rstd, const S* d_y, S* d_x, float* d_weight,
                        std::int64_t rows, std::int64_t cols, bool accumulate) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S *in = x + row * cols, *dy = d_y + row * cols;
    S* dx = d_x + row * cols;
    const float factor = rstd[row];
    Float dot = zero();
    for_row(
        cols, [&](std::int64_t c) { dot = fma(load(in + c) * load(weight + c), load(dy + c), dot); },
        [&](std::int64_t c, std::int64_t n) {
          dot = fma(load_partial(in + c, n) * load_partial(weight + c, n), load_partial(dy + c, n), dot);
        });
    const float projection = reduce_add(dot) / static_cast<float>(cols) * factor * factor;
    for_row(
        cols,
        [&](std::int64_t c) {
          const Float value = load(in + c), gradient = load(dy + c);
          const Float d = (gradient * load(weight + c) - value * projection) * factor;
          store(d_weight + c, fma(gradient * value, broadcast(factor), load(d_weight + c)));
          store(dx + c, accumulate ? load(dx + c) + d : d);
        },
        [&](std::int64_t c, std::int64_t n) {
          const Float value = load_partial(in + c, n), gradient = load_partial(dy + c, n);
          const Float d = (gradient * load_partial(weight + c, n) - value * projection) * factor;
          store_partial(d_weight + c, fma(gradient * value, broadcast(factor), load_partial(d_weight + c, n)), n);
          store_partial(dx + c, accumulate ? load_partial(dx + c, n) + d : d, n);
        });
  }
}

}  // namespace

void rms_norm_rows(const float* x, const float* branch, float* sum, const float* weight, float eps, float* y,
                   float* rstd, std::int64_t rows, std::int64_t cols) {
  norm_rows(x, branch, sum, weight, eps, y, rstd, rows, cols);
}
void rms_norm_rows(const std::uint16_t* x, const std::uint16_t* branch, std::uint16_t* sum, const std::uint16_t* weight,
                   float eps, std::uint16_t* y, float* rstd, std::int64_t rows, std::int64_t cols) {
  norm_rows(x, branch, sum, weight, eps, y, rstd, rows, cols);
}

void rms_norm_backward_rows(const float* x, const float* weight, const float* rstd, const float* d_y, float* d_x,
                            float* d_weight, std::int64_t rows, std::int64_t cols, bool accumulate) {
  norm_backward_rows(x, weight, rstd, d_y, d_x, d_weight, rows, cols, accumulate);
}
void rms_norm_backward_rows(const std::uint16_t* x, const std::uint16_t* weight, const float* rstd,
                            const std::uint16_t* d_y, std::uint16_t* d_x, float* d_weight, std::int64_t rows,
                            std::int64_t cols, bool accumulate) {
  norm_backward_rows(x, weight, rstd, d_y, d_x, d_weight, rows, cols, accumulate);
}

}  // namespace reprise::REPRISE_SIMD
