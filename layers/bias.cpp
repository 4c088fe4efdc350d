#include "layers/bias.hpp"

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/column_sum.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void add_bias_rows(const float* bias, float* y, std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void add_bias_rows(const std::uint16_t* bias, std::uint16_t* y, std::int64_t rows,
                                        std::int64_t cols))
REPRISE_SIMD_DECLARE(void sum_bias_rows(const float* d_y, float* d_bias, std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void sum_bias_rows(const std::uint16_t* d_y, float* d_bias, std::int64_t rows, std::int64_t cols))

template <class T>
void add_bias(const CpuStream& stream, VectorView<const T> bias, MatrixView<T> y) {
  REPRISE_CHECK(bias.size == y.cols, "bias of {} for rows of {}", bias.size, y.cols);
  stream.parallel_for(y.rows, kColumnSumRows, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(add_bias_rows, simd_pointer(bias.data), simd_pointer(y.row(begin).data), end - begin, y.cols);
  });
}

template <class T>
void accumulate_bias_gradient(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y,
                              VectorView<float> d_bias) {
  REPRISE_CHECK(d_bias.size == d_y.cols, "bias gradient of {} for rows of {}", d_bias.size, d_y.cols);
  accumulate_column_sum(stream, arena, d_y.rows, d_bias, [&](std::int64_t begin, std::int64_t end, float* partial) {
    REPRISE_SIMD_CALL(sum_bias_rows, simd_pointer(d_y.row(begin).data), partial, end - begin, d_y.cols);
  });
}

#define REPRISE_INSTANTIATE(T)                                                     \
  template void add_bias<T>(const CpuStream&, VectorView<const T>, MatrixView<T>); \
  template void accumulate_bias_gradient<T>(const CpuStream&, Arena&, MatrixView<const T>, VectorView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
