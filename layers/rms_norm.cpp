#include "layers/rms_norm.hpp"

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/column_sum.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void rms_norm_rows(const float* x, const float* branch, float* sum, const float* weight, float eps,
                                        float* y, float* rstd, std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void rms_norm_rows(const std::uint16_t* x, const std::uint16_t* branch, std::uint16_t* sum,
                                        const std::uint16_t* weight, float eps, std::uint16_t* y, float* rstd,
                                        std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void rms_norm_backward_rows(const float* x, const float* weight, const float* rstd,
                                                 const float* d_y, float* d_x, float* d_weight, std::int64_t rows,
                                                 std::int64_t cols, bool accumulate))
REPRISE_SIMD_DECLARE(void rms_norm_backward_rows(const std::uint16_t* x, const std::uint16_t* weight, const float* rstd,
                                                 const std::uint16_t* d_y, std::uint16_t* d_x, float* d_weight,
                                                 std::int64_t rows, std::int64_t cols, bool accumulate))

namespace {

constexpr std::int64_t kRows = kColumnSumRows;  // rows per chunk

template <class T>
void norm(const CpuStream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
          VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd) {
  REPRISE_CHECK(weight.size == x.cols && y.rows == x.rows && y.cols == x.cols && rstd.size == x.rows,
                "norm of [{}, {}] with weight {}, output [{}, {}], rstd {}", x.rows, x.cols, weight.size, y.rows,
                y.cols, rstd.size);
  const bool adds = branch.data != nullptr;
  stream.parallel_for(x.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t at = begin * x.cols;
    REPRISE_SIMD_CALL(rms_norm_rows, simd_pointer(x.data + at), simd_pointer(adds ? branch.data + at : nullptr),
                      simd_pointer(adds ? sum.data + at : nullptr), simd_pointer(weight.data), eps,
                      simd_pointer(y.data + at), rstd.data + begin, end - begin, x.cols);
  });
}

}  // namespace

template <class T>
void rms_norm(const CpuStream& stream, MatrixView<const T> x, VectorView<const T> weight, float eps, MatrixView<T> y,
              VectorView<float> rstd) {
  norm<T>(stream, x, {}, {}, weight, eps, y, rstd);
}

template <class T>
void add_rms_norm(const CpuStream& stream, MatrixView<const T> x, MatrixView<const T> branch, MatrixView<T> sum,
                  VectorView<const T> weight, float eps, MatrixView<T> y, VectorView<float> rstd) {
  REPRISE_CHECK(branch.size() == x.size() && sum.size() == x.size(), "[{}, {}] + {} elements into {}", x.rows, x.cols,
                branch.size(), sum.size());
  norm<T>(stream, x, branch, sum, weight, eps, y, rstd);
}

template <class T>
void accumulate_rms_norm_backward(const CpuStream& stream, Arena& arena, MatrixView<const T> x,
                                  VectorView<const T> weight, VectorView<const float> rstd, MatrixView<const T> d_y,
                                  MatrixView<T> d_x, VectorView<float> d_weight) {
  REPRISE_CHECK(d_y.size() == x.size() && d_x.size() == x.size() && d_weight.size == x.cols && rstd.size == x.rows,
                "norm backward of [{}, {}]: d_y {}, d_x {}, d_weight {}, rstd {}", x.rows, x.cols, d_y.size(),
                d_x.size(), d_weight.size, rstd.size);
  accumulate_column_sum(stream, arena, x.rows, d_weight, [&](std::int64_t begin, std::int64_t end, float* partial) {
    const std::int64_t at = begin * x.cols;
    REPRISE_SIMD_CALL(rms_norm_backward_rows, simd_pointer(x.data + at), simd_pointer(weight.data), rstd.data + begin,
                      simd_pointer(d_y.data + at), simd_pointer(d_x.data + at), partial, end - begin, x.cols, true);
  });
}

template <class T>
void head_rms_norm(const CpuStream& stream, MatrixView<const T> x, std::int64_t first_head, std::int64_t heads,
                   VectorView<const T> weight, float eps, MatrixView<T> y, MatrixView<float> rstd) {
  const std::int64_t head_dim = weight.size, begin_col = first_head * head_dim;
  stream.parallel_for(x.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    const SimdStorage<T>* none = nullptr;
    for (std::int64_t t = begin; t < end; ++t) {
      REPRISE_SIMD_CALL(rms_norm_rows, simd_pointer(x.row(t).data + begin_col), none, const_cast<SimdStorage<T>*>(none),
                        simd_pointer(weight.data), eps, simd_pointer(y.row(t).data + begin_col),
                        rstd.row(t).data + first_head, heads, head_dim);
    }
  });
}

template <class T>
void head_rms_norm_backward(const CpuStream& stream, Arena& arena, MatrixView<const T> x, std::int64_t first_head,
                            std::int64_t heads, VectorView<const T> weight, MatrixView<const float> rstd,
                            MatrixView<T> d_y, VectorView<float> d_weight) {
  const std::int64_t head_dim = weight.size, begin_col = first_head * head_dim;
  accumulate_column_sum(stream, arena, x.rows, d_weight, [&](std::int64_t begin, std::int64_t end, float* partial) {
    for (std::int64_t t = begin; t < end; ++t) {
      T* gradient = d_y.row(t).data + begin_col;
      REPRISE_SIMD_CALL(rms_norm_backward_rows, simd_pointer(x.row(t).data + begin_col), simd_pointer(weight.data),
                        rstd.row(t).data + first_head, simd_pointer(static_cast<const T*>(gradient)),
                        simd_pointer(gradient), partial, heads, head_dim, false);
    }
  });
}

#define REPRISE_INSTANTIATE(T)                                                                                       \
  template void rms_norm<T>(const CpuStream&, MatrixView<const T>, VectorView<const T>, float, MatrixView<T>,        \
                            VectorView<float>);                                                                      \
  template void add_rms_norm<T>(const CpuStream&, MatrixView<const T>, MatrixView<const T>, MatrixView<T>,           \
                                VectorView<const T>, float, MatrixView<T>, VectorView<float>);                       \
  template void accumulate_rms_norm_backward<T>(const CpuStream&, Arena&, MatrixView<const T>, VectorView<const T>,  \
                                                VectorView<const float>, MatrixView<const T>, MatrixView<T>,         \
                                                VectorView<float>);                                                  \
  template void head_rms_norm<T>(const CpuStream&, MatrixView<const T>, std::int64_t, std::int64_t,                  \
                                 VectorView<const T>, float, MatrixView<T>, MatrixView<float>);                      \
  template void head_rms_norm_backward<T>(const CpuStream&, Arena&, MatrixView<const T>, std::int64_t, std::int64_t, \
                                          VectorView<const T>, MatrixView<const float>, MatrixView<T>,               \
                                          VectorView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
