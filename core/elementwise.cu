#include <algorithm>
#include <type_traits>

#include "core/cuda/launch.hpp"
#include "core/cuda/simt.cuh"
#include "core/elementwise.hpp"
#include "core/transfer.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kElements = 8;  // of one thread: two float32 loads or one bfloat16 load of 16 bytes

/// Applies `body(i)` to all indices, each thread to neighbours: loads of a warp are whole cache lines either way.
template <class Operation>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(std::int64_t size, Operation operation) {
  const std::int64_t begin = global_thread_index() * kElements;
  if (begin + kElements <= size && operation.is_aligned()) {
    operation.pack(begin);
  } else {
    for (std::int64_t i = begin; i < size && i < begin + kElements; ++i) operation.one(i);
  }
}

template <class Operation>
void launch_elementwise(const CudaStream& stream, const char* name, std::int64_t size, const Operation& operation) {
  const LaunchShape shape{name, blocks_for(size, std::int64_t{kThreads} * kElements), kThreads};
  launch(stream, shape, elementwise_kernel<Operation>, size, operation);
}

template <class T>
__device__ bool is_pack_aligned(const T* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % (sizeof(T) * kElements) == 0;
}

template <class T>
__device__ Pack<float, kElements> load_floats(const T* array, std::int64_t index) {
  const Pack<T, kElements> stored = load_pack<kElements>(array, index);
  Pack<float, kElements> values;
  for (int i = 0; i < kElements; ++i) values[i] = to_float(stored[i]);
  return values;
}

template <class T>
__device__ void store_floats(T* array, std::int64_t index, const Pack<float, kElements>& values) {
  Pack<T, kElements> stored;
  for (int i = 0; i < kElements; ++i) stored[i] = from_float<T>(values[i]);
  store_pack(array, index, stored);
}

template <class T>
struct Fill {
  T* y;
  T value;

  __device__ bool is_aligned() const { return is_pack_aligned(y); }
  __device__ void one(std::int64_t i) const { y[i] = value; }
  __device__ void pack(std::int64_t begin) const {
    Pack<T, kElements> values;
    for (int i = 0; i < kElements; ++i) values[i] = value;
    store_pack(y, begin, values);
  }
};

template <class To, class From>
struct Cast {
  const From* x;
  To* y;

  __device__ bool is_aligned() const { return is_pack_aligned(x) && is_pack_aligned(y); }
  __device__ void one(std::int64_t i) const { y[i] = from_float<To>(to_float(x[i])); }
  __device__ void pack(std::int64_t begin) const { store_floats(y, begin, load_floats(x, begin)); }
};

template <class T, class U>
struct Add {
  const U* x;
  T* y;

  __device__ bool is_aligned() const { return is_pack_aligned(x) && is_pack_aligned(y); }
  __device__ void one(std::int64_t i) const { y[i] = from_float<T>(to_float(y[i]) + to_float(x[i])); }
  __device__ void pack(std::int64_t begin) const {
    const auto addends = load_floats(x, begin);
    auto sums = load_floats(y, begin);
    for (int i = 0; i < kElements; ++i) sums[i] += addends[i];
    store_floats(y, begin, sums);
  }
};

template <class T>
struct Scale {
  float factor;
  T* y;

  __device__ bool is_aligned() const { return is_pack_aligned(y); }
  __device__ void one(std::int64_t i) const { y[i] = from_float<T>(to_float(y[i]) * factor); }
  __device__ void pack(std::int64_t begin) const {
    auto values = load_floats(y, begin);
    for (int i = 0; i < kElements; ++i) values[i] *= factor;
    store_floats(y, begin, values);
  }
};

/// One block per row. Gathering reads row index[block] and writes row `block`; scattering the other way round.
template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(MatrixView<const T> from, VectorView<const std::int32_t> index, MatrixView<T> to, bool gathers) {
  const std::int64_t block = blockIdx.x, indexed = index[block];
  device_check(indexed >= 0 && indexed < (gathers ? from.rows : to.rows), "an index lies outside the matrix");
  const T* const source = from.row(gathers ? indexed : block).data;
  T* const target = to.row(gathers ? block : indexed).data;
  if (is_pack_aligned(source) && is_pack_aligned(target) && from.cols % kElements == 0) {
    for (std::int64_t i = std::int64_t{threadIdx.x} * kElements; i < from.cols;
         i += std::int64_t{kThreads} * kElements) {
      store_pack(target, i, load_pack<kElements>(source, i));
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < from.cols; i += kThreads) target[i] = source[i];
  }
}

}  // namespace

template <class T>
void fill(const CudaStream& stream, VectorView<T> y, float value) {
  launch_elementwise(stream, "fill", y.size, Fill<T>{y.data, static_cast<T>(value)});
}

template <class To, class From>
void cast(const CudaStream& stream, VectorView<const From> x, VectorView<To> y) {
  REPRISE_CUDA_CHECK(x.size == y.size, "cast: ", x.size, " and ", y.size, " elements");
  if constexpr (std::is_same_v<To, From>) {
    detail::copy_bytes(stream, x.data, y.data, x.size * static_cast<std::int64_t>(sizeof(To)),
                       detail::Direction::kWithinDevice);
  } else {
    launch_elementwise(stream, "cast", y.size, Cast<To, From>{x.data, y.data});
  }
}

template <class T, class U>
void add(const CudaStream& stream, VectorView<const U> x, VectorView<T> y) {
  REPRISE_CUDA_CHECK(x.size == y.size, "add: ", x.size, " and ", y.size, " elements");
  launch_elementwise(stream, "add", y.size, Add<T, U>{x.data, y.data});
}

template <class T>
void scale(const CudaStream& stream, float factor, VectorView<T> y) {
  launch_elementwise(stream, "scale", y.size, Scale<T>{factor, y.data});
}

template <class T>
void gather_rows(const CudaStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                 MatrixView<T> to) {
  REPRISE_CUDA_CHECK(to.rows == index.size && to.cols == from.cols, "gather_rows: ", index.size, " indices, [", to.rows,
                     ", ", to.cols, "] from [", from.rows, ", ", from.cols, "]");
  launch(stream, {"gather_rows", blocks_for(index.size, 1), kThreads}, copy_rows_kernel<T>, from, index, to, true);
}

template <class T>
void scatter_rows(const CudaStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                  MatrixView<T> to) {
  REPRISE_CUDA_CHECK(from.rows == index.size && to.cols == from.cols, "scatter_rows: ", index.size, " indices, [",
                     from.rows, ", ", from.cols, "] to [", to.rows, ", ", to.cols, "]");
  detail::zero_bytes(stream, to.data, to.size() * static_cast<std::int64_t>(sizeof(T)));
  launch(stream, {"scatter_rows", blocks_for(index.size, 1), kThreads}, copy_rows_kernel<T>, from, index, to, false);
}

#define REPRISE_INSTANTIATE(T)                                                                                       \
  template void fill(const CudaStream&, VectorView<T>, float);                                                       \
  template void scale(const CudaStream&, float, VectorView<T>);                                                      \
  template void gather_rows(const CudaStream&, MatrixView<const T>, VectorView<const std::int32_t>, MatrixView<T>);  \
  template void scatter_rows(const CudaStream&, MatrixView<const T>, VectorView<const std::int32_t>, MatrixView<T>); \
  template void cast(const CudaStream&, VectorView<const float>, VectorView<T>);                                     \
  template void cast(const CudaStream&, VectorView<const BFloat16>, VectorView<T>);                                  \
  template void add(const CudaStream&, VectorView<const float>, VectorView<T>);                                      \
  template void add(const CudaStream&, VectorView<const BFloat16>, VectorView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
