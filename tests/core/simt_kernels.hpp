#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/dtype.hpp"
#include "core/view.hpp"

namespace reprise {

// Small kernels that use what core/cuda offers, one thing each.

/// c [16, 8] = a [16, 16] b, by one warp; b is stored transposed, [8, 16].
void tiny_product(const CudaStream& stream, MatrixView<const BFloat16> a, MatrixView<const BFloat16> b_transposed,
                  MatrixView<float> c, bool loads_by_matrix);
/// out[i] = what lane i gets from each collective in turn, 32 values each.
void collectives(const CudaStream& stream, VectorView<std::int32_t> out);
/// Producer and consumer warps through named barriers: out[i] = 2 i for 64 elements.
void named_barriers(const CudaStream& stream, VectorView<std::int32_t> out);
/// out[b * 1024 + i] = block b's sum, and out[(blocks + b) * 1024 + i] its maximum, of its 1024 inputs, for every
/// thread.
void block_reductions(const CudaStream& stream, VectorView<const float> x, VectorView<float> out);
/// to = from through shared memory by async copies of 4, 8 and 16 bytes; of 96 elements those from `valid` on as zeros.
void copies(const CudaStream& stream, VectorView<const float> from, std::int64_t valid, VectorView<float> to);
/// to [8, 8] = from^T by one warp.
void transpose_tile(const CudaStream& stream, MatrixView<const BFloat16> from, MatrixView<BFloat16> to);

}  // namespace reprise
