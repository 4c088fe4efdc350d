#include "core/elementwise.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "core/elementwise_kernels.hpp"
#include "core/error.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kGrain = 32768;  // elements a chunk

SimdLevel machine_level() {
#if defined(__x86_64__)
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return SimdLevel::kAvx512;
  if (has_avx2) return SimdLevel::kAvx2;
#endif
  return SimdLevel::kPortable;
}

std::atomic<SimdLevel>& current_level() {
  static std::atomic<SimdLevel> level = machine_level();
  return level;
}

std::int64_t rows_per_chunk(std::int64_t cols) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cols));
}

void check_index(const char* name, VectorView<const std::int32_t> index, std::int64_t rows) {
  for (const std::int32_t row : index) {
    REPRISE_CHECK(row >= 0 && row < rows, "{}: row {} of {}", name, row, rows);
  }
}

template <class T>
void copy_row(VectorView<const T> from, VectorView<T> to) {
  if (!from.empty()) std::memcpy(to.data, from.data, static_cast<std::size_t>(from.size) * sizeof(T));
}

}  // namespace

SimdLevel simd_level() {
  return current_level().load(std::memory_order_relaxed);
}

void set_simd_level(SimdLevel level) {
  REPRISE_CHECK(level <= machine_level(), "this machine lacks the instructions of level {}", static_cast<int>(level));
  current_level().store(level);
}

const char* simd_level_name() {
  switch (simd_level()) {
    case SimdLevel::kPortable: return "portable";
    case SimdLevel::kAvx2: return "avx2";
    case SimdLevel::kAvx512: return "avx512";
  }
  return "?";
}

template <class T>
void fill(const CpuStream& stream, VectorView<T> y, float value) {
  const auto converted = static_cast<T>(value);
  stream.parallel_for(y.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::fill(y.data + begin, y.data + end, converted);
  });
}

template <class To, class From>
void cast(const CpuStream& stream, VectorView<const From> x, VectorView<To> y) {
  REPRISE_CHECK(x.size == y.size, "cast: {} and {} elements", x.size, y.size);
  stream.parallel_for(y.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<To, From>) {
      copy_row(x.slice(begin, end - begin), y.slice(begin, end - begin));
    } else {
      REPRISE_SIMD_CALL(cast_array, simd_pointer(x.data + begin), simd_pointer(y.data + begin), end - begin);
    }
  });
}

template <class T, class U>
void add(const CpuStream& stream, VectorView<const U> x, VectorView<T> y) {
  REPRISE_CHECK(x.size == y.size, "add: {} and {} elements", x.size, y.size);
  stream.parallel_for(y.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(add_array, simd_pointer(x.data + begin), simd_pointer(y.data + begin), end - begin);
  });
}

template <class T>
void scale(const CpuStream& stream, float factor, VectorView<T> y) {
  stream.parallel_for(y.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(scale_array, factor, simd_pointer(y.data + begin), end - begin);
  });
}

template <class T>
void gather_rows(const CpuStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                 MatrixView<T> to) {
  REPRISE_CHECK(to.rows == index.size && to.cols == from.cols, "gather_rows: {} indices, [{}, {}] from [{}, {}]",
                index.size, to.rows, to.cols, from.rows, from.cols);
  check_index("gather_rows", index, from.rows);
  stream.parallel_for(index.size, rows_per_chunk(to.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) copy_row(from.row(index[i]), to.row(i));
  });
}

template <class T>
void scatter_rows(const CpuStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                  MatrixView<T> to) {
  REPRISE_CHECK(from.rows == index.size && to.cols == from.cols, "scatter_rows: {} indices, [{}, {}] to [{}, {}]",
                index.size, from.rows, from.cols, to.rows, to.cols);
  check_index("scatter_rows", index, to.rows);
  fill(stream, to.flat(), 0.0f);
  stream.parallel_for(index.size, rows_per_chunk(to.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) copy_row(from.row(i), to.row(index[i]));
  });
}

#define REPRISE_INSTANTIATE(T)                                                                                      \
  template void fill(const CpuStream&, VectorView<T>, float);                                                       \
  template void scale(const CpuStream&, float, VectorView<T>);                                                      \
  template void gather_rows(const CpuStream&, MatrixView<const T>, VectorView<const std::int32_t>, MatrixView<T>);  \
  template void scatter_rows(const CpuStream&, MatrixView<const T>, VectorView<const std::int32_t>, MatrixView<T>); \
  template void cast(const CpuStream&, VectorView<const float>, VectorView<T>);                                     \
  template void cast(const CpuStream&, VectorView<const BFloat16>, VectorView<T>);                                  \
  template void add(const CpuStream&, VectorView<const float>, VectorView<T>);                                      \
  template void add(const CpuStream&, VectorView<const BFloat16>, VectorView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
