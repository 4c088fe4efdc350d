#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "parallel/context.hpp"

namespace reprise {

/// One tensor of the toy model, whole.
struct ToyTensor {
  enum class Split { kRows, kColumns, kCopies, kPartialCopies, kPairsOfHeads };
  std::string name, layer;
  std::int64_t rows = 0, cols = 1;
  Split split = Split::kRows;
  bool decay = true, frozen = false;

  [[nodiscard]] std::int64_t size() const { return rows * cols; }
};

/// A model of small tensors with every kind of sharding that a decoder has: uneven and empty row shards, column shards,
/// copies with equal gradients, copies with partial gradients, heads that two ranks share, a frozen matrix.
[[nodiscard]] const std::vector<ToyTensor>& toy_tensors();

/// What this tensor-parallel rank declares; every copy but the first is not counted.
[[nodiscard]] std::vector<ParameterSpec> toy_specs(int tp_size, int tp_rank);

/// Gradients come in kParts parts a step, which any number of data-parallel ranks and micro-batches that divides it may
/// share; the sum does not depend on who computes which.
inline constexpr int kParts = 12;
inline constexpr double kPartWeight = 2.5;  ///< sum w of one part

/// float32 values, functions of (tensor, element[, step, part]) alone. With `exact` gradients are small integers, whose
/// sums have no rounding.
[[nodiscard]] float toy_weight(std::size_t tensor, std::int64_t element);
[[nodiscard]] float toy_gradient(std::size_t tensor, std::int64_t element, int step, int part, bool exact);

/// Adds the gradients of parts [first, last) to this rank's blocks.
template <class T>
void add_toy_gradients(const Context& context, ParameterSet<T>& parameters, int step, int first, int last, bool exact);
/// Writes toy_weight (rounded to T) into this rank's blocks.
template <class T>
void set_toy_weights(const Stream& stream, ParameterSet<T>& parameters);

/// Index in the row-major whole tensor of element `local` of a block.
[[nodiscard]] inline std::int64_t global_element(const ParameterSpec& spec, std::int64_t local) {
  const std::int64_t row = spec.row_begin + local / spec.cols(), col = spec.col_begin + local % spec.cols();
  return row * spec.global_cols + col;
}

}  // namespace reprise
