#include "tests/support/cuda_emulation/device_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "tests/support/cuda_emulation/block.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_emulation {
namespace {

constexpr std::uintptr_t kPattern = 0xDA7A, kPatternShift = 48;
constexpr std::uintptr_t kAddressMask = (std::uintptr_t{1} << kPatternShift) - 1;
constexpr std::size_t kAlignment = 64, kMostPoisonedBytes = std::size_t{1} << 20;
constexpr std::size_t kCapacity = std::size_t{16} << 30;  // of the emulated device

struct Allocation {
  std::size_t bytes = 0;
  char* mapping = nullptr;
  std::size_t mapping_bytes = 0;
};

struct Memory {
  std::mutex mutex;
  std::map<std::uintptr_t, Allocation> device, pinned;  // by real address
  std::size_t in_use = 0, peak = 0, allocations = 0;
};

Memory& memory() {
  static auto* const instance = new Memory;  // buffers of static storage may be freed after everything else
  return *instance;
}

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

bool has_pattern(std::uintptr_t word) {
  return word >> kPatternShift == kPattern;
}

/// The allocation that holds [address, address + bytes), with the lock held; null when none does.
const Allocation* find(const std::map<std::uintptr_t, Allocation>& allocations, std::uintptr_t address,
                       std::size_t bytes) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  const auto& [begin, allocation] = *--next;
  return address - begin <= allocation.bytes && bytes <= allocation.bytes - (address - begin) ? &allocation : nullptr;
}

/// The bytes of an allocation's pages that were not asked for.
template <class Body>
void for_slack(std::uintptr_t address, const Allocation& allocation, const Body& body) {
  auto* const begin = reinterpret_cast<unsigned char*>(address);
  auto* const pages = reinterpret_cast<unsigned char*>(allocation.mapping) + page_bytes();
  auto* const pages_end =
      reinterpret_cast<unsigned char*>(allocation.mapping) + allocation.mapping_bytes - page_bytes();
  body(pages, begin);
  body(begin + allocation.bytes, pages_end);
}

}  // namespace

void* allocate_device(std::size_t bytes) {
  const std::size_t used = round_up(bytes, kAlignment), pages = round_up(used, page_bytes());
  Allocation allocation{bytes, nullptr, pages + 2 * page_bytes()};
  {
    const std::lock_guard lock(memory().mutex);
    if (bytes > kCapacity || memory().in_use + bytes > kCapacity) return nullptr;
  }
  void* const mapping =
      mmap(nullptr, allocation.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  allocation.mapping = static_cast<char*>(mapping);
  char* const first = allocation.mapping + page_bytes();
  if (mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(first + pages - used);
  // Of large memory only both ends: touching all of it costs more than all that is done with it.
  const std::size_t poisoned = std::min(bytes, kMostPoisonedBytes);
  std::memset(reinterpret_cast<void*>(address), kPoison, poisoned);
  std::memset(reinterpret_cast<void*>(address + bytes - poisoned), kPoison, poisoned);
  for_slack(address, allocation, [](unsigned char* begin, unsigned char* end) {
    std::memset(begin, kPoison, static_cast<std::size_t>(end - begin));
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(begin, static_cast<std::size_t>(end - begin));
#endif
  });
  const std::lock_guard lock(memory().mutex);
  memory().device.emplace(address, allocation);
  memory().in_use += bytes;
  memory().peak = std::max(memory().peak, memory().in_use);
  ++memory().allocations;
  return reinterpret_cast<void*>(address | kPattern << kPatternShift);
}

void free_device(void* device_address) {
  const auto address = reinterpret_cast<std::uintptr_t>(real_address(device_address));
  Allocation allocation;
  {
    const std::lock_guard lock(memory().mutex);
    const auto found = memory().device.find(address);
    if (found == memory().device.end() || !is_device_address(device_address)) {
      throw Fault("device memory is freed that was never allocated, or twice");
    }
    allocation = found->second;
    memory().device.erase(found);
    memory().in_use -= allocation.bytes;
  }
  bool is_intact = true;
  for_slack(address, allocation, [&](unsigned char* begin, unsigned char* end) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(begin, static_cast<std::size_t>(end - begin));
#endif
    for (const unsigned char* byte = begin; byte < end; ++byte) is_intact = is_intact && *byte == kPoison;
  });
  munmap(allocation.mapping, allocation.mapping_bytes);
  if (!is_intact) {
    throw Fault("a kernel wrote before or behind device memory of " + std::to_string(allocation.bytes) + " bytes");
  }
}

void set_bytes(void* real, int value, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(real);
  const std::size_t first = round_up(begin, page_bytes()) - begin;
  const std::size_t pages = bytes > first ? (bytes - first) / page_bytes() * page_bytes() : 0;
  auto* const data = static_cast<char*>(real);
  constexpr std::size_t kLarge = std::size_t{1} << 18;
  if (value != 0 || pages < kLarge || madvise(data + first, pages, MADV_DONTNEED) != 0) {
    std::memset(data, value, bytes);
    return;
  }
  std::memset(data, 0, first);  // the pages are zero when they are next touched
  std::memset(data + first + pages, 0, bytes - first - pages);
}

bool is_device_address(const void* address) {
  return has_pattern(reinterpret_cast<std::uintptr_t>(address));
}

void* real_address(const void* address) {
  const auto word = reinterpret_cast<std::uintptr_t>(address);
  return reinterpret_cast<void*>(has_pattern(word) ? word & kAddressMask : word);
}

void translate_addresses(void* data, std::size_t bytes) {
  auto* const begin = static_cast<char*>(data);
  for (std::size_t at = 0; at + sizeof(std::uintptr_t) <= bytes; at += sizeof(std::uintptr_t)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, begin + at, sizeof word);
    if (!has_pattern(word)) continue;
    word &= kAddressMask;
    std::memcpy(begin + at, &word, sizeof word);
  }
}

void translate_live_addresses(void* data, std::size_t bytes) {
  auto* const begin = static_cast<char*>(data);
  const std::size_t first =
      (sizeof(std::uintptr_t) - reinterpret_cast<std::uintptr_t>(begin) % sizeof(std::uintptr_t)) %
      sizeof(std::uintptr_t);
  for (std::size_t at = first; at + sizeof(std::uintptr_t) <= bytes; at += sizeof(std::uintptr_t)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, begin + at, sizeof word);
    if (!has_pattern(word)) continue;
    const std::lock_guard lock(memory().mutex);
    word &= kAddressMask;
    if (find(memory().device, word, 0) != nullptr) std::memcpy(begin + at, &word, sizeof word);
  }
}

void check_device_range(const void* address, std::size_t bytes, const char* what) {
  if (bytes == 0) return;
  if (!is_device_address(address)) fault(std::string(what) + ": a host address where device memory is meant");
  const std::lock_guard lock(memory().mutex);
  if (find(memory().device, reinterpret_cast<std::uintptr_t>(real_address(address)), bytes) == nullptr) {
    fault(std::string(what) + " of " + std::to_string(bytes) + " bytes reaches beyond its device memory");
  }
}

std::size_t device_bytes_in_use() {
  const std::lock_guard lock(memory().mutex);
  return memory().in_use;
}
std::size_t device_bytes_peak() {
  const std::lock_guard lock(memory().mutex);
  return memory().peak;
}

std::size_t device_allocations() {
  const std::lock_guard lock(memory().mutex);
  return memory().allocations;
}

void* allocate_pinned(std::size_t bytes) {
  void* const address = std::aligned_alloc(kAlignment, round_up(bytes, kAlignment));
  if (address == nullptr) return nullptr;
  std::memset(address, kPoison, bytes);
  const std::lock_guard lock(memory().mutex);
  memory().pinned.emplace(reinterpret_cast<std::uintptr_t>(address), Allocation{bytes, nullptr, 0});
  return address;
}

void free_pinned(void* address) {
  {
    const std::lock_guard lock(memory().mutex);
    if (memory().pinned.erase(reinterpret_cast<std::uintptr_t>(address)) == 0) {
      throw Fault("page-locked memory is freed that was never allocated, or twice");
    }
  }
  std::free(address);
}

bool is_pinned(const void* address, std::size_t bytes) {
  const std::lock_guard lock(memory().mutex);
  return find(memory().pinned, reinterpret_cast<std::uintptr_t>(address), bytes) != nullptr;
}

}  // namespace cuda_emulation
