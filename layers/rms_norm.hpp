#pragma once

#include "core/arena.hpp"
#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

// Root mean square norm of rows: y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps). T is float or BFloat16;
// sums and rstd are float32. Nothing here communicates.

/// x, y [rows, cols], weight [cols], rstd [rows].
template <class T>
void rms_norm(const CpuStream& stream, MatrixView<const T> x, VectorView<const T> weight, float eps, MatrixView<T> y,
              VectorView<float> rstd);
template <class T>
void rms_norm(const CudaStream& stream, MatrixView<const T> x, VectorView<const T> weight, float eps, MatrixView<T> y,
              VectorView<float> rstd);

/// sum = x + branch, then y = norm of sum: the residual addition in the same pass. Bit-equal to the two apart.
template <class T>
void add_rms_norm(const CpuStream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
                  VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd);
template <class T>
void add_rms_norm(const CudaStream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
                  VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd);

/// d_x += rstd (w d_y - x rstd^2 mean(w d_y x)), d_weight += sum over rows of d_y x rstd (in fixed order).
template <class T>
void accumulate_rms_norm_backward(const CpuStream& stream, Arena& arena, MatrixView<const T> x,
                                  VectorView<const T> weight, VectorView<const float> rstd, MatrixView<const T> d_y,
                                  MatrixView<T> d_x, VectorView<float> d_weight);
template <class T>
void accumulate_rms_norm_backward(const CudaStream& stream, Arena& arena, MatrixView<const T> x,
                                  VectorView<const T> weight, VectorView<const float> rstd, MatrixView<const T> d_y,
                                  MatrixView<T> d_x, VectorView<float> d_weight);

/// The norm over head_dim of `heads` heads that stand at the beginning of each row (q and k of qwen3).
/// x [tokens, >= heads head_dim], weight [head_dim], y likewise at the beginning of its rows, rstd [tokens, heads].
template <class T>
void head_rms_norm(const CpuStream& stream, MatrixView<const T> x, std::int64_t first_head, std::int64_t heads,
                   VectorView<const T> weight, float eps, MatrixView<T> y, MatrixView<float> rstd);
template <class T>
void head_rms_norm(const CudaStream& stream, MatrixView<const T> x, std::int64_t first_head, std::int64_t heads,
                   VectorView<const T> weight, float eps, MatrixView<T> y, MatrixView<float> rstd);

/// In place: d_y of those heads becomes d_x (overwritten); d_weight accumulates.
template <class T>
void head_rms_norm_backward(const CpuStream& stream, Arena& arena, MatrixView<const T> x, std::int64_t first_head,
                            std::int64_t heads, VectorView<const T> weight, MatrixView<const float> rstd,
                            MatrixView<T> d_y, VectorView<float> d_weight);
template <class T>
void head_rms_norm_backward(const CudaStream& stream, Arena& arena, MatrixView<const T> x, std::int64_t first_head,
                            std::int64_t heads, VectorView<const T> weight, MatrixView<const float> rstd,
                            MatrixView<T> d_y, VectorView<float> d_weight);

template <class T>
void rms_norm(const Stream& stream, MatrixView<const T> x, VectorView<const T> weight, float eps, MatrixView<T> y,
              VectorView<float> rstd) {
  stream.visit([&](const auto& device) { rms_norm<T>(device, x, weight, eps, y, rstd); });
}
template <class T>
void add_rms_norm(const Stream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
                  VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd) {
  stream.visit([&](const auto& device) { add_rms_norm<T>(device, x, branch, sum, weight, eps, y, rstd); });
}
template <class T>
void accumulate_rms_norm_backward(const Stream& stream, Arena& arena, MatrixView<const T> x, VectorView<const T> weight,
                                  VectorView<const float> rstd, MatrixView<const T> d_y, MatrixView<T> d_x,
                                  VectorView<float> d_weight) {
  stream.visit(
      [&](const auto& device) { accumulate_rms_norm_backward<T>(device, arena, x, weight, rstd, d_y, d_x, d_weight); });
}
template <class T>
void head_rms_norm(const Stream& stream, MatrixView<const T> x, std::int64_t first_head, std::int64_t heads,
                   VectorView<const T> weight, float eps, MatrixView<T> y, MatrixView<float> rstd) {
  stream.visit([&](const auto& device) { head_rms_norm<T>(device, x, first_head, heads, weight, eps, y, rstd); });
}
template <class T>
void head_rms_norm_backward(const Stream& stream, Arena& arena, MatrixView<const T> x, std::int64_t first_head,
                            std::int64_t heads, VectorView<const T> weight, MatrixView<const float> rstd,
                            MatrixView<T> d_y, VectorView<float> d_weight) {
  stream.visit([&](const auto& device) {
    head_rms_norm_backward<T>(device, arena, x, first_head, heads, weight, rstd, d_y, d_weight);
  });
}

}  // namespace reprise
