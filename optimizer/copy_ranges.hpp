#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// A run of elements that lies at `flat` in a flat buffer and at `packed` in a packed one.
struct CopyRange {
  std::int64_t flat = 0, packed = 0;
  std::int64_t size = 0;
};
/// A launch gives one block to a range: longer runs are cut into such.
inline constexpr std::int64_t kCopyRangeElements = 16384;

/// packed = the ranges of flat. The table lies on the stream's device, like the buffers.
void pack_ranges(const CpuStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> flat,
                 VectorView<float> packed);
void pack_ranges(const CudaStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> flat,
                 VectorView<float> packed);
/// The way back; what lies between the ranges stays.
void unpack_ranges(const CpuStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> packed,
                   VectorView<float> flat);
void unpack_ranges(const CudaStream& stream, VectorView<const CopyRange> ranges, VectorView<const float> packed,
                   VectorView<float> flat);

inline void pack_ranges(const Stream& stream, VectorView<const CopyRange> ranges, VectorView<const float> flat,
                        VectorView<float> packed) {
  stream.visit([&](const auto& device) { pack_ranges(device, ranges, flat, packed); });
}
inline void unpack_ranges(const Stream& stream, VectorView<const CopyRange> ranges, VectorView<const float> packed,
                          VectorView<float> flat) {
  stream.visit([&](const auto& device) { unpack_ranges(device, ranges, packed, flat); });
}

}  // namespace reprise
