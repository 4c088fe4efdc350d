#include "optimizer/copy_ranges.hpp"

#include <algorithm>

namespace reprise {

void pack_ranges(const CpuStream&, VectorView<const CopyRange> ranges, VectorView<const float> flat,
                 VectorView<float> packed) {
  for (const CopyRange& range : ranges) std::copy_n(flat.data + range.flat, range.size, packed.data + range.packed);
}

void unpack_ranges(const CpuStream&, VectorView<const CopyRange> ranges, VectorView<const float> packed,
                   VectorView<float> flat) {
  for (const CopyRange& range : ranges) std::copy_n(packed.data + range.packed, range.size, flat.data + range.flat);
}

}  // namespace reprise
