#pragma once

#include "core/cuda_stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// total += the sum over rows of partials [rows, total.size], in an order that depends on the number of rows alone.
void add_partial_rows(const CudaStream& stream, MatrixView<const float> partials, VectorView<float> total);

}  // namespace reprise
