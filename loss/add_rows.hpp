#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// to[index[i]] += from[i] for whole rows; no index comes twice.
void add_rows(const CpuStream& stream, MatrixView<const float> from, VectorView<const std::int32_t> index,
              MatrixView<float> to);
void add_rows(const CudaStream& stream, MatrixView<const float> from, VectorView<const std::int32_t> index,
              MatrixView<float> to);
inline void add_rows(const Stream& stream, MatrixView<const float> from, VectorView<const std::int32_t> index,
                     MatrixView<float> to) {
  stream.visit([&](const auto& device) { add_rows(device, from, index, to); });
}

}  // namespace reprise
