#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/view.hpp"

namespace reprise {

// The gradient of vocabulary rows from the deltas of the tokens that list them, on a GPU.

/// Up to kRowUnitTokens consecutive tokens whose deltas for one vocabulary row lie one behind the other.
struct alignas(8) RowUnit {
  std::uint32_t tokens;  ///< first token, counted from the list's first, and in the upper 8 bits how many
  std::int32_t deltas;   ///< place of their first delta

  [[nodiscard]] static constexpr RowUnit make(std::int64_t token, std::int64_t count, std::int64_t deltas) {
    return {static_cast<std::uint32_t>(token) | static_cast<std::uint32_t>(count) << 24,
            static_cast<std::int32_t>(deltas)};
  }
  [[nodiscard]] constexpr int token() const { return static_cast<int>(tokens & 0xffffffU); }
  [[nodiscard]] constexpr int count() const { return static_cast<int>(tokens >> 24); }
};
inline constexpr int kRowUnitTokens = 8;

/// The one token of a unit, and its delta.
struct alignas(8) TokenDelta {
  std::int32_t token;
  float delta;
};

/// Rows and what lists them: row i has the units [begin[i], begin[i + 1]), in the order of the tokens.
struct RowList {
  VectorView<const std::int32_t> rows;   ///< [n] counted from this rank's first row
  VectorView<const std::int32_t> begin;  ///< [n + 1]
  VectorView<const RowUnit> units;
  int unit_tokens = 1;  ///< the most tokens of a unit: 1 or kRowUnitTokens
};

/// The most tokens that add_row_gradients takes at once.
[[nodiscard]] std::int64_t most_gradient_tokens(const CudaStream& stream);

/// d_weight[row] += sum over the row's tokens of delta h, every sum in the order of the tokens. hidden: [tokens of the
/// list, D], rows in the order of falling numbers of units. Every row of d_weight is read and written once.
/// scratch: as many as units where they are of one token, else unused.
template <class T>
void add_row_gradients(const CudaStream& stream, MatrixView<const T> hidden, const RowList& list,
                       VectorView<const float> deltas, VectorView<TokenDelta> scratch, MatrixView<float> d_weight);

/// dense [tokens, columns >= rows]: column i gets the deltas of row i, rounded to T, and zeros elsewhere.
template <class T>
void fill_dense_deltas(const CudaStream& stream, const RowList& list, VectorView<const float> deltas,
                       MatrixView<T> dense);

// All for float and BFloat16.

}  // namespace reprise
