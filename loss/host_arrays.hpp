#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/math.hpp"
#include "core/transfer.hpp"
#include "parallel/context.hpp"

namespace reprise {

/// What the host works out about a micro-batch for kernels to read, too large to be copied from ordinary memory without
/// waiting. The memory is page-locked where the device has its own, and kept from one micro-batch to the next.
class HostArrays {
 public:
  /// Gives all arrays back. Their copies to the device must be done.
  void reset() {
    if (blocks_.size() > 1) blocks_.erase(blocks_.begin(), blocks_.end() - 1);
    block_ = 0;
    used_ = 0;
  }

  /// Uninitialised host memory.
  template <class T>
  [[nodiscard]] VectorView<T> vector(const Context& context, std::int64_t size, std::string_view what) {
    return {reinterpret_cast<T*>(take(context.stream, size * static_cast<std::int64_t>(sizeof(T)), what)), size};
  }

  /// The same values where kernels can read them: on a CPU stream `host` itself, else a copy in arena memory, asked for
  /// without waiting.
  template <class T>
  [[nodiscard]] static VectorView<const T> on_device(const Context& context, VectorView<const T> host,
                                                     std::string_view what) {
    if (context.stream.is_cpu()) return host;
    const auto copy = context.arena.vector<T>(host.size, what);
    copy_to_device<T>(context.stream, host, copy);
    return copy;
  }

 private:
  std::uint8_t* take(const Stream& stream, std::int64_t bytes, std::string_view what) {
    constexpr std::int64_t kAlignment = 64;
    bytes = round_up(std::max<std::int64_t>(bytes, 1), kAlignment);
    std::int64_t held = 0;
    for (const auto& block : blocks_) held += block.size();
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size()) ++block_, used_ = 0;
    if (block_ == blocks_.size()) blocks_.emplace_back(stream, std::max(bytes, 2 * held), what);
    std::uint8_t* const place = blocks_[block_].view().data + used_;
    used_ += bytes;
    return place;
  }

  std::vector<HostBuffer<std::uint8_t>> blocks_;  // the last is the largest
  std::size_t block_ = 0;                         // the block that is being filled
  std::int64_t used_ = 0;                         // bytes taken of that block
};

}  // namespace reprise
