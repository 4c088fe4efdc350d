#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// is_bad[i] = 1 where row i of x holds NaN or Inf, else 0. float and BFloat16.
template <class T>
void find_bad_rows(const CpuStream& stream, MatrixView<const T> x, VectorView<std::int32_t> is_bad);
template <class T>
void find_bad_rows(const CudaStream& stream, MatrixView<const T> x, VectorView<std::int32_t> is_bad);
template <class T>
void find_bad_rows(const Stream& stream, MatrixView<const T> x, VectorView<std::int32_t> is_bad) {
  stream.visit([&](const auto& device) { find_bad_rows<T>(device, x, is_bad); });
}

}  // namespace reprise
