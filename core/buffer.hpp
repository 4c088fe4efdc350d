#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

namespace detail {
/// 64-byte aligned, zero-filled (untouched pages cost nothing). Throws OutOfMemory naming `what`.
void* allocate_bytes(const Stream& stream, std::int64_t bytes, std::string_view what);
void free_bytes(void* pointer, std::int64_t bytes) noexcept;
/// Gives the pages wholly inside [pointer, pointer + bytes) back to the system and zeroes the rest.
void discard_bytes(void* pointer, std::int64_t bytes) noexcept;
}  // namespace detail

/// Owns `size` zero-initialised elements on the stream's device. Move-only; frees without throwing.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Stream& stream, std::int64_t size, std::string_view what)
      : data_(static_cast<T*>(detail::allocate_bytes(stream, size * static_cast<std::int64_t>(sizeof(T)), what))),
        size_(size) {}
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { detail::free_bytes(data_, bytes()); }

  [[nodiscard]] VectorView<T> view() { return {data_, size_}; }
  [[nodiscard]] VectorView<const T> view() const { return {data_, size_}; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] std::int64_t bytes() const { return size_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace reprise
