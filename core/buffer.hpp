#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

namespace detail {
/// Zero-filled; 64-byte aligned on the CPU (untouched pages cost nothing), 256-byte on a GPU. Throws OutOfMemory naming
/// `what`.
void* allocate_bytes(const CpuStream& stream, std::int64_t bytes, std::string_view what);
void* allocate_bytes(const CudaStream& stream, std::int64_t bytes, std::string_view what);
void free_bytes(const CpuStream& stream, void* pointer, std::int64_t bytes) noexcept;
void free_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes) noexcept;
/// Zeroes [pointer, pointer + bytes); on the CPU the pages wholly inside are given back to the system.
void discard_bytes(const CpuStream& stream, void* pointer, std::int64_t bytes) noexcept;
void discard_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes) noexcept;
}  // namespace detail

/// Owns `size` zero-initialised elements on the stream's device. Move-only; frees without throwing, in the order of the
/// stream's work.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Stream& stream, std::int64_t size, std::string_view what) : stream_(stream), size_(size) {
    data_ = static_cast<T*>(
        stream.visit([&](const auto& device) { return detail::allocate_bytes(device, bytes(), what); }));
  }
  Buffer(Buffer&& other) noexcept
      : stream_(other.stream_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    stream_.visit([&](const auto& device) { detail::free_bytes(device, data_, bytes()); });
  }

  /// Zeroes elements [begin, end); on the CPU whole pages are given back to the system.
  void discard(std::int64_t begin, std::int64_t end) {
    stream_.visit([&](const auto& device) {
      detail::discard_bytes(device, data_ + begin, (end - begin) * static_cast<std::int64_t>(sizeof(T)));
    });
  }

  [[nodiscard]] VectorView<T> view() { return {data_, size_}; }
  [[nodiscard]] VectorView<const T> view() const { return {data_, size_}; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] std::int64_t bytes() const { return size_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  Stream stream_{CpuStream{}};  // that memory is freed on
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace reprise
