#include "core/transfer.hpp"

#include <algorithm>
#include <cstring>

#include "core/error.hpp"

namespace reprise::detail {

void* allocate_host_bytes(const CpuStream& stream, std::int64_t bytes, std::string_view what) {
  return allocate_bytes(stream, bytes, what);
}

void free_host_bytes(const CpuStream& stream, void* pointer, std::int64_t bytes) noexcept {
  free_bytes(stream, pointer, bytes);
}

void copy_bytes(const CpuStream& stream, const void* from, void* to, std::int64_t bytes, Direction) {
  constexpr std::int64_t kGrain = std::int64_t{1} << 18;
  stream.parallel_for(bytes, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                static_cast<std::size_t>(end - begin));
  });
}

void zero_bytes(const CpuStream&, void* pointer, std::int64_t bytes) {
  if (bytes > 0) std::memset(pointer, 0, static_cast<std::size_t>(bytes));
}

void synchronize(const CpuStream&) {}

void check_sizes(std::int64_t from, std::int64_t to) {
  REPRISE_CHECK(from == to, "a copy of {} elements to {}", from, to);
}

}  // namespace reprise::detail
