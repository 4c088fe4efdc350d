#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

struct ArgMax {
  float value;
  std::int32_t col;
};

/// best[i] = the largest element of row i and the first column that has it. NaN counts as +infinity; a row without
/// columns gives (-infinity, -1). One read of the matrix.
void arg_max_rows(const CpuStream& stream, MatrixView<const float> rows, VectorView<ArgMax> best);
void arg_max_rows(const CudaStream& stream, MatrixView<const float> rows, VectorView<ArgMax> best);
inline void arg_max_rows(const Stream& stream, MatrixView<const float> rows, VectorView<ArgMax> best) {
  stream.visit([&](const auto& device) { arg_max_rows(device, rows, best); });
}

}  // namespace reprise
