#pragma once

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

enum class Transpose : bool { kNo = false, kYes = true };

/// c = alpha op(a) op(b) + beta c, with op(a) [M, K], op(b) [K, N], c [M, N], all row-major; sums in float32.
/// beta = 0 overwrites c whatever it held. Empty M, N or K are ordinary (K = 0 scales c). Shapes that do not match are
/// kInternal errors. bfloat16 operands are widened block by block; no float32 copy of a whole operand is ever made
/// for the larger operand. c may be float32 (weight gradients, logits) or of the storage type.
template <class In, class Out>
void gemm(const CpuStream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixView<const In> a,
          MatrixView<const In> b, float beta, MatrixView<Out> c);
/// On a GPU: cuBLASLt; the algorithm is chosen once per shape.
template <class In, class Out>
void gemm(const CudaStream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixView<const In> a,
          MatrixView<const In> b, float beta, MatrixView<Out> c);
template <class In, class Out>
void gemm(const Stream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixView<const In> a,
          MatrixView<const In> b, float beta, MatrixView<Out> c) {
  stream.visit([&](const auto& device) { gemm(device, transpose_a, transpose_b, alpha, a, b, beta, c); });
}

// Instantiated for <float, float>, <BFloat16, BFloat16>, <BFloat16, float>.

/// The name of the BLAS kernels in use ("SkylakeX", "Haswell", ...), for provenance and benchmarks.
[[nodiscard]] const char* gemm_kernel_name();
/// Threads that the BLAS library may start inside one call; 1 unless set. Leave it: gemm cuts c into tiles, by shape
/// alone, and runs them on the threads of the stream, so that ranks and kernels share one pool.
void set_gemm_threads(int threads);

}  // namespace reprise
