#include <algorithm>

#include "core/math.hpp"
#include "loss/candidate_index.hpp"
#include "loss/packed_ids.hpp"

namespace reprise {

VectorView<const std::int32_t> place_ids(const CudaStream& stream, const Context& context, HostArrays& host_arrays,
                                         const LocalCandidates& local) {
  constexpr int kLowBits = 16;
  const std::int64_t steps = local.own.size() > 0 ? (local.own.end - 1) >> kLowBits : 0;
  const auto low = host_arrays.vector<std::uint16_t>(context.stream, local.ids.size, "packed candidates");
  for (std::int64_t i = 0; i < low.size; ++i) low[i] = static_cast<std::uint16_t>(local.ids[i]);
  const auto below = host_arrays.vector<std::int32_t>(context.stream, local.tiles.size * steps, "packed candidates");
  for (std::int64_t i = 0; i < local.tiles.size; ++i) {
    const std::int32_t* const begin = local.ids.data + local.tiles[i].id_begin;
    const std::int32_t* const end = local.ids.data + local.tiles[i].id_end;
    for (std::int64_t h = 0; h < steps; ++h) {
      const auto bound = narrow<std::int32_t>((h + 1) << kLowBits);
      below[i * steps + h] = narrow<std::int32_t>(std::lower_bound(begin, end, bound) - begin);
    }
  }
  const auto device_low = host_arrays.on_device<std::uint16_t>(context.stream, low);
  const auto device_below = host_arrays.on_device<std::int32_t>(context.stream, below);
  host_arrays.make_ready(context.stream);
  const auto ids = context.arena.vector<std::int32_t>(local.ids.size, "local candidates");
  unpack_ids(stream, {device_low, {device_below.data, local.tiles.size, steps}}, local.device_tiles, ids);
  return ids;
}

}  // namespace reprise
