#include "core/buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise::detail {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kSmallestMapping = std::int64_t{1} << 30;  // the sanitizer sees overruns on the heap only
#else
constexpr std::int64_t kSmallestMapping = kHugePage;
#endif

bool is_mapped(std::int64_t bytes) {
  return bytes >= kSmallestMapping;
}

std::int64_t page_size() {
  return sysconf(_SC_PAGESIZE);
}

[[noreturn]] void out_of_memory(std::int64_t bytes, std::string_view what) {
  throw OutOfMemory(
      fmt::format("out of memory: {} bytes ({:.2f} GiB) for {} could not be had; use more ranks, a smaller "
                  "micro-batch or recomputation",
                  bytes, static_cast<double>(bytes) / 0x1.0p30, what));
}

/// Anonymous memory that begins at a huge page; the superfluous ends of the mapping are given back.
void* map_pages(std::int64_t bytes) {
  const std::int64_t size = round_up(bytes, page_size());
  const auto total = static_cast<std::size_t>(size + kHugePage);
  void* const mapping = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  auto* const first = static_cast<char*>(mapping);
  const auto misalignment = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(first) % kHugePage);
  const std::int64_t skipped = misalignment == 0 ? 0 : kHugePage - misalignment;
  if (skipped > 0) munmap(first, static_cast<std::size_t>(skipped));
  char* const aligned = first + skipped;
  munmap(aligned + size, static_cast<std::size_t>(kHugePage - skipped));
  madvise(aligned, static_cast<std::size_t>(size), MADV_HUGEPAGE);  // advice: a refusal changes only the speed
  return aligned;
}

}  // namespace

void* allocate_bytes(const CpuStream&, std::int64_t bytes, std::string_view what) {
  REPRISE_CHECK(bytes >= 0, "{} bytes for {}", bytes, what);
  if (bytes == 0) return nullptr;
  if (bytes > (std::int64_t{1} << 60)) out_of_memory(bytes, what);  // rounding up would overflow
  if (is_mapped(bytes)) {
    void* const pages = map_pages(bytes);
    if (pages == nullptr) out_of_memory(bytes, what);
    return pages;
  }
  const auto size = static_cast<std::size_t>(round_up(bytes, kAlignment));
  void* const memory = std::aligned_alloc(kAlignment, size);
  if (memory == nullptr) out_of_memory(bytes, what);
  return std::memset(memory, 0, size);
}

void free_bytes(const CpuStream&, void* pointer, std::int64_t bytes) noexcept {
  if (pointer == nullptr) return;
  if (is_mapped(bytes)) {
    munmap(pointer, static_cast<std::size_t>(round_up(bytes, page_size())));
  } else {
    std::free(pointer);
  }
}

void discard_bytes(const CpuStream&, void* pointer, std::int64_t bytes) noexcept {
  if (bytes <= 0) return;
  const auto page = static_cast<std::uintptr_t>(page_size());
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  const std::uintptr_t end = begin + static_cast<std::uintptr_t>(bytes);
  const std::uintptr_t first_page = (begin + page - 1) / page * page, last_page = end / page * page;
  auto* const data = static_cast<char*>(pointer);
  if (first_page >= last_page ||
      madvise(reinterpret_cast<void*>(first_page), last_page - first_page, MADV_DONTNEED) != 0) {
    std::memset(data, 0, static_cast<std::size_t>(bytes));
    return;
  }
  std::memset(data, 0, first_page - begin);
  std::memset(reinterpret_cast<char*>(last_page), 0, end - last_page);
}

}  // namespace reprise::detail
