#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/dtype.hpp"
#include "core/view.hpp"

namespace reprise {

/// Twin of the restricted head's forward: block i reads rows [i per_block, (i + 1) per_block) of `rows`, an index into
/// `table` [n, cols], by 16-byte loads, and writes one float, the sum of what it read. What it reaches is the ceiling
/// of a gather from the L2 cache or, for large tables, from device memory. cols is a multiple of 8.
void read_listed_rows(const CudaStream& stream, MatrixView<const BFloat16> table, VectorView<const std::int32_t> rows,
                      std::int64_t per_block, VectorView<float> sums);

/// Twin of dW: every listed row of `table` [n, cols] is read, changed and written once. Rows are unique.
void update_listed_rows(const CudaStream& stream, MatrixView<float> table, VectorView<const std::int32_t> rows);

}  // namespace reprise
