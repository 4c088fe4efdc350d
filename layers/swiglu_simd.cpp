#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

template <class S>
void forward_rows(const S* gate_up, S* y, std::int64_t rows, std::int64_t ffn) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S *gate = gate_up + row * 2 * ffn, *up = gate + ffn;
    S* out = y + row * ffn;
    std::int64_t c = 0;
    for (; c + kWidth <= ffn; c += kWidth) {
      const Float g = load(gate + c);
      store(out + c, g * sigmoid(g) * load(up + c));
    }
    if (c < ffn) {
      const Float g = load_partial(gate + c, ffn - c);
      store_partial(out + c, g * sigmoid(g) * load_partial(up + c, ffn - c), ffn - c);
    }
  }
}

struct Gradient {
  Float gate, up;
};

REPRISE_SIMD_INLINE Gradient gradient(Float gate, Float up, Float d_y) {
  const Float s = sigmoid(gate);
  return {d_y * up * s * fma(gate, 1.0f - s, broadcast(1.0f)), d_y * gate * s};
}

template <class S>
void backward_rows(const S* gate_up, const S* d_y, S* d_gate_up, std::int64_t rows, std::int64_t ffn) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const S *gate = gate_up + row * 2 * ffn, *up = gate + ffn, *dy = d_y + row * ffn;
    S *d_gate = d_gate_up + row * 2 * ffn, *d_up = d_gate + ffn;
    std::int64_t c = 0;
    for (; c + kWidth <= ffn; c += kWidth) {
      const Gradient d = gradient(load(gate + c), load(up + c), load(dy + c));
      store(d_gate + c, d.gate);
      store(d_up + c, d.up);
    }
    if (c < ffn) {
      const std::int64_t n = ffn - c;
      const Gradient d = gradient(load_partial(gate + c, n), load_partial(up + c, n), load_partial(dy + c, n));
      store_partial(d_gate + c, d.gate, n);
      store_partial(d_up + c, d.up, n);
    }
  }
}

}  // namespace

void swiglu_rows(const float* gate_up, float* y, std::int64_t rows, std::int64_t ffn) {
  forward_rows(gate_up, y, rows, ffn);
}
void swiglu_rows(const std::uint16_t* gate_up, std::uint16_t* y, std::int64_t rows, std::int64_t ffn) {
  forward_rows(gate_up, y, rows, ffn);
}
void swiglu_backward_rows(const float* gate_up, const float* d_y, float* d_gate_up, std::int64_t rows,
                          std::int64_t ffn) {
  backward_rows(gate_up, d_y, d_gate_up, rows, ffn);
}
void swiglu_backward_rows(const std::uint16_t* gate_up, const std::uint16_t* d_y, std::uint16_t* d_gate_up,
                          std::int64_t rows, std::int64_t ffn) {
  backward_rows(gate_up, d_y, d_gate_up, rows, ffn);
}

}  // namespace reprise::REPRISE_SIMD
