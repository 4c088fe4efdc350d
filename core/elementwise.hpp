#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// Instruction sets that the CPU kernels are compiled for; chosen once per process from cpuid.
enum class SimdLevel : std::uint8_t { kPortable, kAvx2, kAvx512 };
[[nodiscard]] SimdLevel simd_level();
/// Lowers the level (tests and benchmarks); a level above the machine's is a kInternal error.
void set_simd_level(SimdLevel level);
[[nodiscard]] const char* simd_level_name();

// All of these take equal sizes (kInternal error otherwise) and are instantiated for float and BFloat16. Indices
// outside the matrix are kInternal errors on a CPU and must not occur on a GPU.

/// y = value.
template <class T>
void fill(const CpuStream& stream, VectorView<T> y, float value);
template <class T>
void fill(const CudaStream& stream, VectorView<T> y, float value);
/// y = x, converting.
template <class To, class From>
void cast(const CpuStream& stream, VectorView<const From> x, VectorView<To> y);
template <class To, class From>
void cast(const CudaStream& stream, VectorView<const From> x, VectorView<To> y);
/// y += x. (T, U) in {float, BFloat16}^2; sums in float32, rounded once.
template <class T, class U>
void add(const CpuStream& stream, VectorView<const U> x, VectorView<T> y);
template <class T, class U>
void add(const CudaStream& stream, VectorView<const U> x, VectorView<T> y);
/// y *= factor.
template <class T>
void scale(const CpuStream& stream, float factor, VectorView<T> y);
template <class T>
void scale(const CudaStream& stream, float factor, VectorView<T> y);
/// to[i] = from[index[i]] for whole rows.
template <class T>
void gather_rows(const CpuStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                 MatrixView<T> to);
template <class T>
void gather_rows(const CudaStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                 MatrixView<T> to);
/// to[index[i]] = from[i] for whole rows; the other rows of `to` are zeroed.
template <class T>
void scatter_rows(const CpuStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                  MatrixView<T> to);
template <class T>
void scatter_rows(const CudaStream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                  MatrixView<T> to);

template <class T>
void fill(const Stream& stream, VectorView<T> y, float value) {
  stream.visit([&](const auto& device) { fill(device, y, value); });
}
template <class To, class From>
void cast(const Stream& stream, VectorView<const From> x, VectorView<To> y) {
  stream.visit([&](const auto& device) { cast(device, x, y); });
}
template <class T, class U>
void add(const Stream& stream, VectorView<const U> x, VectorView<T> y) {
  stream.visit([&](const auto& device) { add(device, x, y); });
}
template <class T>
void scale(const Stream& stream, float factor, VectorView<T> y) {
  stream.visit([&](const auto& device) { scale(device, factor, y); });
}
template <class T>
void gather_rows(const Stream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                 MatrixView<T> to) {
  stream.visit([&](const auto& device) { gather_rows(device, from, index, to); });
}
template <class T>
void scatter_rows(const Stream& stream, MatrixView<const T> from, VectorView<const std::int32_t> index,
                  MatrixView<T> to) {
  stream.visit([&](const auto& device) { scatter_rows(device, from, index, to); });
}

}  // namespace reprise
