#pragma once

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// y = silu(gate) * up with silu(g) = g / (1 + e^-g). gate_up [tokens, 2 ffn] holds gate | up, y [tokens, ffn].
template <class T>
void swiglu(const CpuStream& stream, MatrixView<const T> gate_up, MatrixView<T> y);
template <class T>
void swiglu(const CudaStream& stream, MatrixView<const T> gate_up, MatrixView<T> y);

/// With s = 1 / (1 + e^-gate): d_gate = d_y up s (1 + gate (1 - s)), d_up = d_y gate s. d_gate_up is overwritten.
template <class T>
void swiglu_backward(const CpuStream& stream, MatrixView<const T> gate_up, MatrixView<const T> d_y,
                     MatrixView<T> d_gate_up);
template <class T>
void swiglu_backward(const CudaStream& stream, MatrixView<const T> gate_up, MatrixView<const T> d_y,
                     MatrixView<T> d_gate_up);

template <class T>
void swiglu(const Stream& stream, MatrixView<const T> gate_up, MatrixView<T> y) {
  stream.visit([&](const auto& device) { swiglu<T>(device, gate_up, y); });
}
template <class T>
void swiglu_backward(const Stream& stream, MatrixView<const T> gate_up, MatrixView<const T> d_y,
                     MatrixView<T> d_gate_up) {
  stream.visit([&](const auto& device) { swiglu_backward<T>(device, gate_up, d_y, d_gate_up); });
}

}  // namespace reprise
