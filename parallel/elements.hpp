#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/transfer.hpp"

namespace reprise::detail {

// What transports do with elements that they move and do not interpret.

using Counts = std::span<const std::int64_t>;

[[nodiscard]] inline std::int64_t bytes_of(std::int64_t count, DType dtype) {
  return count * static_cast<std::int64_t>(size_of(dtype));
}
[[nodiscard]] inline const std::byte* at(const void* base, std::int64_t index, DType dtype) {
  return static_cast<const std::byte*>(base) + bytes_of(index, dtype);
}
[[nodiscard]] inline std::byte* at(void* base, std::int64_t index, DType dtype) {
  return static_cast<std::byte*>(base) + bytes_of(index, dtype);
}

/// Where each rank's part begins, and the total at the end.
[[nodiscard]] inline std::vector<std::int64_t> offsets_of(Counts counts) {
  std::vector<std::int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

/// to = from on the stream's device; both the same place, or not overlapping.
inline void copy_elements(const Stream& stream, const void* from, void* to, std::int64_t count, DType dtype) {
  if (count == 0 || from == to) return;
  stream.visit(
      [&](const auto& device) { copy_bytes(device, from, to, bytes_of(count, dtype), Direction::kWithinDevice); });
}

}  // namespace reprise::detail
