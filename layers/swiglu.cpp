#include "layers/swiglu.hpp"

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void swiglu_rows(const float* gate_up, float* y, std::int64_t rows, std::int64_t ffn))
REPRISE_SIMD_DECLARE(void swiglu_rows(const std::uint16_t* gate_up, std::uint16_t* y, std::int64_t rows,
                                      std::int64_t ffn))
REPRISE_SIMD_DECLARE(void swiglu_backward_rows(const float* gate_up, const float* d_y, float* d_gate_up,
                                               std::int64_t rows, std::int64_t ffn))
REPRISE_SIMD_DECLARE(void swiglu_backward_rows(const std::uint16_t* gate_up, const std::uint16_t* d_y,
                                               std::uint16_t* d_gate_up, std::int64_t rows, std::int64_t ffn))

namespace {
constexpr std::int64_t kRows = 16;  // rows per chunk
}  // namespace

template <class T>
void swiglu(const CpuStream& stream, MatrixView<const T> gate_up, MatrixView<T> y) {
  REPRISE_CHECK(gate_up.rows == y.rows && gate_up.cols == 2 * y.cols, "gate_up [{}, {}], y [{}, {}]", gate_up.rows,
                gate_up.cols, y.rows, y.cols);
  stream.parallel_for(y.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(swiglu_rows, simd_pointer(gate_up.row(begin).data), simd_pointer(y.row(begin).data), end - begin,
                      y.cols);
  });
}

template <class T>
void swiglu_backward(const CpuStream& stream, MatrixView<const T> gate_up, MatrixView<const T> d_y,
                     MatrixView<T> d_gate_up) {
  REPRISE_CHECK(gate_up.rows == d_y.rows && gate_up.cols == 2 * d_y.cols && d_gate_up.size() == gate_up.size(),
                "gate_up [{}, {}], d_y [{}, {}], d_gate_up {}", gate_up.rows, gate_up.cols, d_y.rows, d_y.cols,
                d_gate_up.size());
  stream.parallel_for(d_y.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(swiglu_backward_rows, simd_pointer(gate_up.row(begin).data), simd_pointer(d_y.row(begin).data),
                      simd_pointer(d_gate_up.row(begin).data), end - begin, d_y.cols);
  });
}

template void swiglu<float>(const CpuStream&, MatrixView<const float>, MatrixView<float>);
template void swiglu<BFloat16>(const CpuStream&, MatrixView<const BFloat16>, MatrixView<BFloat16>);
template void swiglu_backward<float>(const CpuStream&, MatrixView<const float>, MatrixView<const float>,
                                     MatrixView<float>);
template void swiglu_backward<BFloat16>(const CpuStream&, MatrixView<const BFloat16>, MatrixView<const BFloat16>,
                                        MatrixView<BFloat16>);

}  // namespace reprise
