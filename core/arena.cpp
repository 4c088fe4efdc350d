#include "core/arena.hpp"

#include <algorithm>
#include <cstring>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

void* Arena::take(std::int64_t bytes, std::string_view what) {
  constexpr std::int64_t kAlignment = 64, kSmallestBlock = std::int64_t{1} << 20;
  REPRISE_CHECK(bytes >= 0 && bytes <= (std::int64_t{1} << 60), "{} bytes for {}", bytes, what);
  const std::int64_t size = round_up(bytes, kAlignment);
  Place& at = place_;
  while (at.block < blocks_.size() && at.used + size > blocks_[at.block].bytes()) {
    at = {at.block + 1, 0, at.before + at.used};
  }
  // A block that is added when little was foreseen is a share of what there is, so that there are never many.
  if (at.block == blocks_.size()) add_block(std::max({size, at.before / 4, kSmallestBlock}), what);
  void* const memory = blocks_[at.block].view().data + at.used;
  at.used += size;
  high_water_ = std::max(high_water_, at.before + at.used);
  return memory;
}

void Arena::add_block(std::int64_t bytes, std::string_view what) {
  blocks_.emplace_back(stream_, bytes, what);
  ++allocations_;
}

std::int64_t Arena::held_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& block : blocks_) bytes += block.bytes();
  return bytes;
}

void Arena::copy_bytes(const void* host, void* values, std::int64_t bytes, std::string_view what) {
  constexpr std::int64_t kRound = std::int64_t{1} << 20;  // of staging
  if (bytes == 0) return;
  if (stream_.is_cpu()) {
    std::memcpy(values, host, static_cast<std::size_t>(bytes));
    return;
  }
  if (staging_.taken_bytes() + bytes > kRound) staging_.give_back(stream_);
  std::byte* const staged = staging_.take(stream_, bytes, what).host;
  std::memcpy(staged, host, static_cast<std::size_t>(bytes));
  stream_.visit(
      [&](const auto& device) { detail::copy_bytes(device, staged, values, bytes, detail::Direction::kToDevice); });
}

void Arena::reset() {
  const std::int64_t wanted = std::max(high_water_, reserved_);
  const bool fits = blocks_.size() == 1 ? blocks_.front().bytes() >= wanted : wanted == 0;
  if (!fits) {
    blocks_.clear();
    add_block(wanted, "the step's activations");
  }
  place_ = {};
}

}  // namespace reprise
