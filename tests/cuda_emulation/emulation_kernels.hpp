#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/dtype.hpp"
#include "core/view.hpp"

namespace reprise {

// Kernels that are right, and the same with one line removed.

enum class Mistake : std::uint8_t {
  kNone,
  kNoBarrier,           ///< partial sums are read without the barrier that lets them be there
  kNoCopyWait,          ///< the ring's stage is read before its async copies are waited for
  kLateCopyWait,        ///< the wait leaves one group too many on its way
  kNoBarrierAfterCopy,  ///< each thread waits for its own copies and reads those of others
  kNoReuseBarrier,      ///< a stage is filled again while others still read it
};

/// sums[i] = sum of row i, one block each.
void row_sums(const CudaStream& stream, MatrixView<const float> x, VectorView<float> sums, Mistake mistake);
/// The same through a ring of async copies.
void ring_row_sums(const CudaStream& stream, MatrixView<const float> x, VectorView<float> sums, Mistake mistake);
/// Half of the block skips a barrier.
void divergent_barrier(const CudaStream& stream);
/// Two halves of a warp meet in different shuffles.
void divergent_shuffle(const CudaStream& stream, VectorView<float> out);
/// y[0] is written although y may be shorter.
void write_one(const CudaStream& stream, VectorView<float> y, std::int64_t index);
/// Every thread of every block writes the order in which it ran.
void run_order(const CudaStream& stream, VectorView<std::int32_t> order, VectorView<std::int32_t> counter);
/// Takes `taken` floats of shared memory where the launch asks for `asked`.
void take_shared(const CudaStream& stream, std::int64_t asked, std::int64_t taken, VectorView<float> out);
/// Sets y[0] = value through a table of pointers in device memory.
void write_through_table(const CudaStream& stream, VectorView<float* const> table, float value);

}  // namespace reprise
