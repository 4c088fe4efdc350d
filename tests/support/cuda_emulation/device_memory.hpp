#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

// Device memory is separate, guarded memory. What the host sees as a device address is the real one with its upper 16
// bits set to a pattern that no processor accepts, so host code that follows it faults at once, as it would where a
// GPU owns the memory. A launch gives its kernel the real addresses: it looks through the bytes of the arguments for
// the pattern. Guard pages lie around every allocation; what remains between its end and the page is checked when it
// is freed.

/// The device address of new poisoned memory, 64-byte aligned; null when it could not be had.
[[nodiscard]] void* allocate_device(std::size_t bytes);
/// Throws Fault for what is no allocation, and for one that a kernel wrote beyond.
void free_device(void* device_address);

/// memset of device memory by its real address.
void set_bytes(void* real, int value, std::size_t bytes);

[[nodiscard]] bool is_device_address(const void* address);
/// The real address of a device address; anything else is returned as it is.
[[nodiscard]] void* real_address(const void* address);
/// Real addresses in place of device addresses among `bytes` bytes; only aligned words can be addresses.
void translate_addresses(void* data, std::size_t bytes);
/// The same for data on its way to the device, where only addresses of living allocations count.
void translate_live_addresses(void* data, std::size_t bytes);
/// Throws Fault unless [address, address + bytes) lies in one allocation.
void check_device_range(const void* address, std::size_t bytes, const char* what);

[[nodiscard]] std::size_t device_bytes_in_use();
[[nodiscard]] std::size_t device_bytes_peak();   ///< the most that ever was
[[nodiscard]] std::size_t device_allocations();  ///< made so far

/// Page-locked host memory: ordinary memory that the runtime knows of.
[[nodiscard]] void* allocate_pinned(std::size_t bytes);
void free_pinned(void* address);
[[nodiscard]] bool is_pinned(const void* address, std::size_t bytes);

}  // namespace cuda_emulation
