#pragma once

#include "core/arena.hpp"
#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// y [rows, cols] += bias [cols] on every row.
template <class T>
void add_bias(const CpuStream& stream, VectorView<const T> bias, MatrixView<T> y);
template <class T>
void add_bias(const CudaStream& stream, VectorView<const T> bias, MatrixView<T> y);

/// d_bias [cols] += sums of d_y [rows, cols] over rows, in float32 and an order that depends on the shape alone.
template <class T>
void accumulate_bias_gradient(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y, VectorView<float> d_bias);
template <class T>
void accumulate_bias_gradient(const CudaStream& stream, Arena& arena, MatrixView<const T> d_y,
                              VectorView<float> d_bias);

template <class T>
void add_bias(const Stream& stream, VectorView<const T> bias, MatrixView<T> y) {
  stream.visit([&](const auto& device) { add_bias<T>(device, bias, y); });
}
template <class T>
void accumulate_bias_gradient(const Stream& stream, Arena& arena, MatrixView<const T> d_y, VectorView<float> d_bias) {
  stream.visit([&](const auto& device) { accumulate_bias_gradient<T>(device, arena, d_y, d_bias); });
}

}  // namespace reprise
