#include "core/staging.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

Staging::Place Staging::take(const Stream& stream, std::int64_t bytes, std::string_view what) {
  constexpr std::int64_t kAlignment = 64;
  bytes = round_up(std::max<std::int64_t>(bytes, 1), kAlignment);
  if (taken_.empty() || taken_.back().used + bytes > taken_.back().host.size()) {
    taken_.push_back(find_block(stream, bytes, what));
  }
  Block& block = taken_.back();
  const std::int64_t at = std::exchange(block.used, block.used + bytes);
  return {block.host.view().data + at, block.device.size() > 0 ? block.device.view().data + at : nullptr};
}

Staging::~Staging() {
  try {
    for (Block& block : resting_) block.done->synchronize();
    for (Block& block : taken_) {
      block.done->record(block.stream);
      block.done->synchronize();
    }
  } catch (...) {  // a device that has failed: nothing is under way any more
  }
}

/// The oldest of the resting blocks is the first whose work is done; one that is too small makes room.
Staging::Block Staging::find_block(const Stream& stream, std::int64_t bytes, std::string_view what) {
  constexpr std::int64_t kSmallest = std::int64_t{1} << 16;
  block_bytes_ = std::max({bytes, block_bytes_, kSmallest});
  while (!resting_.empty() && resting_.front().done->is_done()) {
    Block block = std::move(resting_.front());
    resting_.pop_front();
    if (block.host.size() < block_bytes_) continue;
    block.used = 0;
    return block;
  }
  Block block;
  block.host = HostBuffer<std::byte>(stream, block_bytes_, what);
  if (has_device_memory_ && !stream.is_cpu()) block.device = Buffer<std::byte>(stream, block_bytes_, what);
  block.done = make_stream_event(stream);
  block.stream = stream;
  ++allocations_;
  return block;
}

std::byte* Staging::device_of(const void* host) const {
  for (const Block& block : taken_) {
    const auto* const begin = block.host.view().data;
    const auto* const place = static_cast<const std::byte*>(host);
    if (begin <= place && place < begin + block.used)
      return const_cast<std::byte*>(block.device.view().data) + (place - begin);
  }
  REPRISE_CHECK(false, "memory that was not taken from this staging");
  return nullptr;
}

void Staging::give_back(const Stream& stream) {
  block_bytes_ = std::max<std::int64_t>(
      block_bytes_, static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(taken_bytes()))));
  for (Block& block : taken_) {
    block.done->record(stream);
    resting_.push_back(std::move(block));
  }
  taken_.clear();
}

std::int64_t Staging::taken_bytes() const {
  std::int64_t bytes = 0;
  for (const Block& block : taken_) bytes += block.used;
  return bytes;
}

}  // namespace reprise
