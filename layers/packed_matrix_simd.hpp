#pragma once

#include "core/simd.hpp"
#include "layers/attention_block.hpp"

// Small matrix products on packed float32 rows, for kernels that are compiled once per instruction set. Rows of packed
// matrices are padded with zeros to whole vectors of the widest instruction set; `padded` is that row length.

namespace reprise::REPRISE_SIMD {

inline constexpr std::int64_t kRowUnit = 16;  // packed rows are multiples of the widest vector, whatever the level

REPRISE_SIMD_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
REPRISE_SIMD_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) {
  return a < b ? b : a;
}
REPRISE_SIMD_INLINE std::int64_t padded_size(std::int64_t size) {
  return (size + kRowUnit - 1) / kRowUnit * kRowUnit;
}

// ---- products: c[m, n] (+)= sum_k a(m, k) b[k, n] ------------------------------------------------------------------

/// Left operand: element (m, k) stands at data[m * row + k * step], so that a transpose is another pair of strides.
struct Left {
  const float* data;
  std::int64_t row, step;
};

template <int kRows, int kVectors>
REPRISE_SIMD_INLINE void multiply_tile(Left a, const float* b, std::int64_t b_row, std::int64_t depth, float* c,
                                       std::int64_t c_row, bool accumulate) {
  Float sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[m][n] = accumulate ? load(c + m * c_row + n * kWidth) : zero();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Float right[kVectors];
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) right[n] = load(b + k * b_row + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Float left = broadcast(a.data[m * a.row + k * a.step]);
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) sum[m][n] = fma(left, right[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) store(c + m * c_row + n * kWidth, sum[m][n]);
  }
}

template <int kVectors>
REPRISE_SIMD_INLINE void multiply_columns(std::int64_t rows, Left a, const float* b, std::int64_t b_row,
                                          std::int64_t depth, float* c, std::int64_t c_row, bool accumulate) {
  std::int64_t m = 0;
  const auto tile = [&]<int kRows>() __attribute__((always_inline)) {
    for (; m + kRows <= rows; m += kRows) {
      multiply_tile<kRows, kVectors>({a.data + m * a.row, a.row, a.step}, b, b_row, depth, c + m * c_row, c_row,
                                     accumulate);
    }
  };
#if REPRISE_SIMD_WIDTH == 16
  if constexpr (kVectors <= 3) tile.template operator()<8>();
#endif
  tile.template operator()<4>();
  tile.template operator()<2>();
  tile.template operator()<1>();
}

/// c [rows, vectors whole vectors]. Few rows at a time keep all sums in registers.
inline void multiply(std::int64_t rows, std::int64_t vectors, std::int64_t depth, Left a, const float* b,
                     std::int64_t b_row, float* c, std::int64_t c_row, bool accumulate) {
  std::int64_t n = 0;
#if REPRISE_SIMD_WIDTH == 16
  for (; n + 4 <= vectors && vectors - n != 5 && vectors - n != 6; n += 4) {
    multiply_columns<4>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
#endif
  for (; n + 3 <= vectors; n += 3) {
    multiply_columns<3>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
  for (; n + 2 <= vectors; n += 2) {
    multiply_columns<2>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
  for (; n < vectors; ++n) {
    multiply_columns<1>(rows, a, b + n * kWidth, b_row, depth, c + n * kWidth, c_row, accumulate);
  }
}

// ---- packing -------------------------------------------------------------------------------------------------------

/// to [rows, padded] = scale * from.
template <class S>
void pack_rows(const S* from, std::int64_t stride, std::int64_t rows, std::int64_t cols, float scale, float* to) {
  const std::int64_t padded = padded_size(cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    const S* in = from + row * stride;
    float* out = to + row * padded;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(out + c, load(in + c) * scale);
    for (; c < padded; c += kWidth) {
      store(out + c, load_partial(in + smaller(c, cols), larger(0, smaller(cols - c, kWidth))) * scale);
    }
  }
}

/// a0 b0 a1 b1 ... of the first halves of a and b.
REPRISE_SIMD_INLINE Float interleave_first(Float a, Float b) {
#if REPRISE_SIMD_WIDTH == 4
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#elif REPRISE_SIMD_WIDTH == 8
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#endif
}
REPRISE_SIMD_INLINE Float interleave_second(Float a, Float b) {
#if REPRISE_SIMD_WIDTH == 4
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#elif REPRISE_SIMD_WIDTH == 8
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#endif
}

/// Transposes a square of vectors: interleaving the two halves of the rows log2(kWidth) times moves element (i, j) to
/// (j, i).
REPRISE_SIMD_INLINE void transpose(Float (&x)[kWidth]) {
#pragma GCC unroll 4
  for (std::int64_t stage = 1; stage < kWidth; stage *= 2) {
    Float y[kWidth];
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kWidth / 2; ++i) {
      y[2 * i] = interleave_first(x[i], x[i + kWidth / 2]);
      y[2 * i + 1] = interleave_second(x[i], x[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kWidth; ++i) x[i] = y[i];
  }
}

/// to [cols, kKeyPanel] = transpose of from [rows, cols]; columns behind `rows` are zero.
template <class S>
void pack_transposed(const S* from, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* to) {
  for (std::int64_t row = 0; row < kKeyPanel; row += kWidth) {
    for (std::int64_t col = 0; col < cols; col += kWidth) {
      const std::int64_t count = smaller(kWidth, cols - col);
      Float square[kWidth];
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kWidth; ++i) {
        square[i] = zero();
        if (row + i >= rows) continue;
        const S* in = from + (row + i) * stride + col;
        square[i] = count == kWidth ? load(in) : load_partial(in, count);
      }
      transpose(square);
      for (std::int64_t i = 0; i < count; ++i) store(to + (col + i) * kKeyPanel + row, square[i]);
    }
  }
}

/// to = scale * from [rows, padded], without the padding.
template <class S>
void unpack_rows(const float* from, std::int64_t rows, std::int64_t cols, float scale, S* to, std::int64_t stride) {
  const std::int64_t padded = padded_size(cols);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* in = from + row * padded;
    S* out = to + row * stride;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth) store(out + c, load(in + c) * scale);
    if (c < cols) store_partial(out + c, load(in + c) * scale, cols - c);
  }
}

inline void clear(float* to, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) to[i] = 0.0f;
}

}  // namespace reprise::REPRISE_SIMD
