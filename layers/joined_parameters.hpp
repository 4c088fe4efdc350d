#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.hpp"
#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/parameter.hpp"
#include "core/stream.hpp"
#include "core/transfer.hpp"

namespace reprise {

// Several parameters, declared one behind the other with joins_next, as one: they are where their slots touch (sizes
// that are multiples of 16 elements), and are copied together for a call elsewhere.

/// True when the blocks of these parameters follow each other without a gap.
template <class T>
[[nodiscard]] bool are_adjacent(const ParameterSet<T>& parameters, const std::vector<std::int64_t>& indices) {
  const auto& slots = parameters.layout().slots;
  for (std::size_t i = 0; i + 1 < indices.size(); ++i) {
    const auto here = static_cast<std::size_t>(indices[i]), next = static_cast<std::size_t>(indices[i + 1]);
    if (slots[here].begin + parameters.spec(indices[i]).size() != slots[next].begin) return false;
  }
  return true;
}

/// joined = the values of these parameters, one behind the other.
template <class T>
void join(const Stream& stream, ParameterSet<T>& parameters, const std::vector<std::int64_t>& indices,
          VectorView<T> joined) {
  std::int64_t begin = 0;
  for (const std::int64_t index : indices) {
    const VectorView<const T> part = parameters.value(index).flat();
    copy_on_device<T>(stream, part, joined.slice(begin, part.size));
    begin += part.size;
  }
}

/// The values of these parameters as one matrix [rows, cols]: themselves, or a copy in the arena.
template <class T>
[[nodiscard]] MatrixView<const T> joined_value(const Stream& stream, Arena& arena, ParameterSet<T>& parameters,
                                               const std::vector<std::int64_t>& indices, std::int64_t rows,
                                               std::int64_t cols) {
  if (are_adjacent(parameters, indices)) return {parameters.value(indices.front()).data, rows, cols};
  const MatrixView<T> joined = arena.matrix<T>(rows, cols, "joined weights");
  join(stream, parameters, indices, joined.flat());
  return joined;
}

/// Adds what stands one behind the other in `joined` to the gradients of these parameters.
template <class T>
void add_to_gradients(const Stream& stream, VectorView<const float> joined, ParameterSet<T>& parameters,
                      const std::vector<std::int64_t>& indices) {
  std::int64_t begin = 0;
  for (const std::int64_t index : indices) {
    const VectorView<float> gradient = parameters.gradient(index).flat();
    add<float, float>(stream, joined.slice(begin, gradient.size), gradient);
    begin += gradient.size;
  }
}

/// The gradients of these parameters, as one matrix [d_y.cols, x.cols], += d_y^T x.
template <class T>
void accumulate_joined_gradient(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                                ParameterSet<T>& parameters, const std::vector<std::int64_t>& indices) {
  if (are_adjacent(parameters, indices)) {
    const MatrixView<float> gradient(parameters.gradient(indices.front()).data, d_y.cols, x.cols);
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, gradient);
    return;
  }
  const Arena::Scope scope(arena);
  const MatrixView<float> joined = arena.matrix<float>(d_y.cols, x.cols, "joined gradients");
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 0.0f, joined);
  add_to_gradients(stream, joined.flat(), parameters, indices);
}

}  // namespace reprise
