#include "core/gemm.hpp"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/elementwise.hpp"
#include "core/elementwise_kernels.hpp"
#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kWidenedExtent = 512;  // rows, columns and depth of a block that is widened to float32

struct Shape {
  std::int64_t m = 0, n = 0, k = 0;
};

/// Threads of the BLAS library itself: one, because tiles run on the threads of the stream.
void use_one_blas_thread() {
  static const bool done = (openblas_set_num_threads(1), true);
  static_cast<void>(done);
}

/// The half-open block of c that one call of the BLAS library computes.
struct Tile {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
};

/// Tiles of one size, chosen from the shape alone: the same bits for every thread count.
struct Tiling {
  std::int64_t tile_rows = 0, tile_cols = 0, across = 0, count = 0;

  Tiling(const Shape& shape, std::int64_t largest_extent) {
    constexpr std::int64_t kWorkOfTile = std::int64_t{8} << 20;  // multiply-adds: about 0.2 ms
    constexpr std::int64_t kMostTiles = 64, kSmallestExtent = 64;
    std::int64_t down = ceil_div(shape.m, largest_extent);
    across = ceil_div(shape.n, largest_extent);
    while (down * across < kMostTiles && (shape.m * shape.n / (down * across)) * shape.k >= 2 * kWorkOfTile) {
      const std::int64_t height = shape.m / down, width = shape.n / across;
      if (std::max(height, width) < 2 * kSmallestExtent) break;
      (height > width ? down : across) *= 2;
    }
    tile_rows = round_up(ceil_div(shape.m, down), 16);
    tile_cols = round_up(ceil_div(shape.n, across), 16);
    across = ceil_div(shape.n, tile_cols);
    count = ceil_div(shape.m, tile_rows) * across;
  }
  [[nodiscard]] Tile tile(std::int64_t index, const Shape& shape) const {
    const std::int64_t row = index / across * tile_rows, col = index % across * tile_cols;
    return {row, std::min(tile_rows, shape.m - row), col, std::min(tile_cols, shape.n - col)};
  }
};

/// A block of a row-major matrix: pointer to its first element and distance of its rows.
template <class T>
struct Block {
  T* data = nullptr;
  std::int64_t stride = 0;
};

/// The block of op(x) that begins at (row, col) of op(x), as stored.
template <class T>
Block<T> block_at(MatrixView<T> x, Transpose transpose, std::int64_t row, std::int64_t col) {
  return {transpose == Transpose::kYes ? &x(col, row) : &x(row, col), x.cols};
}

/// One row times a matrix, [1, K] [K, N]: a general product would first copy the matrix into its own order.
void multiply_row(Transpose transpose_a, Transpose transpose_b, const Shape& shape, float alpha, Block<const float> a,
                  Block<const float> b, float beta, Block<float> c) {
  const bool is_transposed = transpose_b == Transpose::kYes;  // b is stored [N, K]: c = b a, else c = b^T a
  if (beta == 0.0f) std::fill_n(c.data, shape.n, 0.0f);       // not every BLAS lets 0 erase a NaN
  cblas_sgemv(CblasRowMajor, is_transposed ? CblasNoTrans : CblasTrans,
              static_cast<blasint>(is_transposed ? shape.n : shape.k),
              static_cast<blasint>(is_transposed ? shape.k : shape.n), alpha, b.data, static_cast<blasint>(b.stride),
              a.data, static_cast<blasint>(transpose_a == Transpose::kYes ? a.stride : 1), beta, c.data, 1);
}

void multiply(Transpose transpose_a, Transpose transpose_b, const Shape& shape, float alpha, Block<const float> a,
              Block<const float> b, float beta, Block<float> c) {
  if (shape.m == 1) {
    multiply_row(transpose_a, transpose_b, shape, alpha, a, b, beta, c);
    return;
  }
  const auto flag = [](Transpose transpose) { return transpose == Transpose::kYes ? CblasTrans : CblasNoTrans; };
  cblas_sgemm(CblasRowMajor, flag(transpose_a), flag(transpose_b), static_cast<blasint>(shape.m),
              static_cast<blasint>(shape.n), static_cast<blasint>(shape.k), alpha, a.data,
              static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), beta, c.data,
              static_cast<blasint>(c.stride));
}

template <class From, class To>
void cast_block(Block<const From> from, std::int64_t rows, std::int64_t cols, Block<To> to) {
  for (std::int64_t i = 0; i < rows; ++i) {
    REPRISE_SIMD_CALL(cast_array, simd_pointer(from.data + i * from.stride), simd_pointer(to.data + i * to.stride),
                      cols);
  }
}

/// Widened blocks of one thread: at most three of kWidenedExtent^2 floats, kept from call to call.
struct Scratch {
  std::vector<float> a, b, c;
};

Block<float> scratch_block(std::vector<float>& memory, std::int64_t rows, std::int64_t cols) {
  const auto size = static_cast<std::size_t>(rows * cols);
  if (memory.size() < size) memory.resize(size);
  return {memory.data(), cols};
}

/// op(x)[row .. row + rows, col .. col + cols] as float32, in the stored orientation.
Block<const float> widen(MatrixView<const BFloat16> x, Transpose transpose, std::int64_t row, std::int64_t rows,
                         std::int64_t col, std::int64_t cols, std::vector<float>& memory) {
  if (transpose == Transpose::kYes) std::swap(rows, cols);
  const Block<float> wide = scratch_block(memory, rows, cols);
  cast_block(block_at(x, transpose, row, col), rows, cols, wide);
  return {wide.data, wide.stride};
}

void multiply_tile(const Tile& tile, std::int64_t depth, Transpose transpose_a, Transpose transpose_b, float alpha,
                   MatrixView<const float> a, MatrixView<const float> b, float beta, MatrixView<float> c) {
  multiply(transpose_a, transpose_b, {tile.rows, tile.cols, depth}, alpha, block_at(a, transpose_a, tile.row, 0),
           block_at(b, transpose_b, 0, tile.col), beta, block_at(c, Transpose::kNo, tile.row, tile.col));
}

template <class Out>
void multiply_tile(const Tile& tile, std::int64_t depth, Transpose transpose_a, Transpose transpose_b, float alpha,
                   MatrixView<const BFloat16> a, MatrixView<const BFloat16> b, float beta, MatrixView<Out> c) {
  thread_local Scratch scratch;
  const Block<Out> target = block_at(c, Transpose::kNo, tile.row, tile.col);
  Block<float> sums;
  if constexpr (std::is_same_v<Out, float>) {
    sums = target;
  } else {
    sums = scratch_block(scratch.c, tile.rows, tile.cols);
    if (beta != 0.0f) cast_block(Block<const Out>{target.data, target.stride}, tile.rows, tile.cols, sums);
  }
  for (std::int64_t k = 0; k < depth; k += kWidenedExtent) {
    const std::int64_t size = std::min(kWidenedExtent, depth - k);
    multiply(transpose_a, transpose_b, {tile.rows, tile.cols, size}, alpha,
             widen(a, transpose_a, tile.row, tile.rows, k, size, scratch.a),
             widen(b, transpose_b, k, size, tile.col, tile.cols, scratch.b), k == 0 ? beta : 1.0f, sums);
  }
  if constexpr (!std::is_same_v<Out, float>) {
    cast_block(Block<const float>{sums.data, sums.stride}, tile.rows, tile.cols, target);
  }
}

template <class In, class Out>
Shape checked_shape(Transpose transpose_a, Transpose transpose_b, MatrixView<const In> a, MatrixView<const In> b,
                    MatrixView<Out> c) {
  const bool flip_a = transpose_a == Transpose::kYes, flip_b = transpose_b == Transpose::kYes;
  const Shape shape = {flip_a ? a.cols : a.rows, flip_b ? b.rows : b.cols, flip_a ? a.rows : a.cols};
  REPRISE_CHECK((flip_b ? b.cols : b.rows) == shape.k && c.rows == shape.m && c.cols == shape.n,
                "a is [{}, {}]{}, b [{}, {}]{}, c [{}, {}]", a.rows, a.cols, flip_a ? " transposed" : "", b.rows,
                b.cols, flip_b ? " transposed" : "", c.rows, c.cols);
  constexpr std::int64_t kLimit = std::numeric_limits<blasint>::max();
  REPRISE_CHECK(std::max({a.rows, a.cols, b.rows, b.cols, c.rows, c.cols}) <= kLimit,
                "a dimension of [{}, {}, {}] is too large for the BLAS library", shape.m, shape.n, shape.k);
  return shape;
}

}  // namespace

template <class In, class Out>
void gemm(const CpuStream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixView<const In> a,
          MatrixView<const In> b, float beta, MatrixView<Out> c) {
  const Shape shape = checked_shape(transpose_a, transpose_b, a, b, c);
  if (shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0 || alpha == 0.0f) {
    beta == 0.0f ? fill(stream, c.flat(), 0.0f) : scale(stream, beta, c.flat());
    return;
  }
  use_one_blas_thread();
  const bool is_widened = !std::is_same_v<In, float>;
  const Tiling tiling(shape, is_widened ? kWidenedExtent : std::numeric_limits<std::int32_t>::max());
  stream.parallel_for(tiling.count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      multiply_tile(tiling.tile(i, shape), shape.k, transpose_a, transpose_b, alpha, a, b, beta, c);
    }
  });
}

template void gemm(const CpuStream&, Transpose, Transpose, float, MatrixView<const float>, MatrixView<const float>,
                   float, MatrixView<float>);
template void gemm(const CpuStream&, Transpose, Transpose, float, MatrixView<const BFloat16>,
                   MatrixView<const BFloat16>, float, MatrixView<BFloat16>);
template void gemm(const CpuStream&, Transpose, Transpose, float, MatrixView<const BFloat16>,
                   MatrixView<const BFloat16>, float, MatrixView<float>);

const char* gemm_kernel_name() {
  return openblas_get_corename();
}

void set_gemm_threads(int threads) {
  REPRISE_CHECK(threads >= 1, "{} threads", threads);
  use_one_blas_thread();
  openblas_set_num_threads(threads);
}

}  // namespace reprise
