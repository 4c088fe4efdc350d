#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>
#include <vector>

#include "core/buffer.hpp"
#include "core/stream_event.hpp"
#include "core/transfer.hpp"

namespace reprise {

/// Page-locked memory that the host fills for a stream's device, and where asked for as much device memory at the side.
/// Both are handed out in order and given back together; they are handed out again when the stream has come so far. The
/// host never waits for that: it takes other memory, so that there is as much as the host runs ahead of the device.
/// It allocates only for a larger round than any before, and when the host is further ahead than ever.
class Staging {
 public:
  /// `has_device_memory`: every place has a twin on the device.
  explicit Staging(bool has_device_memory) : has_device_memory_(has_device_memory) {}
  Staging(Staging&&) noexcept = default;
  Staging& operator=(Staging&&) noexcept = default;
  /// Waits for what uses the memory.
  ~Staging();

  struct Place {
    std::byte* host = nullptr;
    std::byte* device = nullptr;  ///< null without device memory
  };
  /// Uninitialised, 64-byte aligned.
  [[nodiscard]] Place take(const Stream& stream, std::int64_t bytes, std::string_view what);
  /// The twin of host memory that was taken and not given back.
  [[nodiscard]] std::byte* device_of(const void* host) const;
  /// All that was taken. `stream` has been asked for the last work that uses it.
  void give_back(const Stream& stream);
  [[nodiscard]] std::int64_t taken_bytes() const;
  /// How often memory was allocated. New device memory is there, and zeroed, when the stream of `take` has come so far.
  [[nodiscard]] std::int64_t allocations() const { return allocations_; }

 private:
  struct Block {
    HostBuffer<std::byte> host;
    Buffer<std::byte> device;
    std::int64_t used = 0;
    std::unique_ptr<StreamEvent> done;  // with what used it last
    Stream stream{CpuStream{}};
  };
  [[nodiscard]] Block find_block(const Stream& stream, std::int64_t bytes, std::string_view what);

  bool has_device_memory_;
  std::vector<Block> taken_;
  std::deque<Block> resting_;     // in the order in which they were given back
  std::int64_t block_bytes_ = 0;  // the largest round, or more
  std::int64_t allocations_ = 0;
};

}  // namespace reprise
