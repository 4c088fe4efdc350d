#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/view.hpp"
#include "loss/candidate_tile.hpp"

namespace reprise {

/// The ascending ids of tiles on their way to a GPU, in two bytes an id: the lower 16 bits of each, and where in its
/// tile the upper bits grow.
struct PackedIds {
  VectorView<const std::uint16_t> low;   ///< [ids]
  MatrixView<const std::int32_t> steps;  ///< [tiles, h]: how many ids of the tile lie below (column + 1) 2^16
};

/// ids[i] = the id; `tiles` and all else lie on the device.
void unpack_ids(const CudaStream& stream, const PackedIds& packed, VectorView<const LocalTile> tiles,
                VectorView<std::int32_t> ids);

}  // namespace reprise
