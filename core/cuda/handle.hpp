#pragma once

#include <utility>

namespace reprise {

/// Owns one handle of a C library: move-only, destroyed without throwing.
///   using Event = UniqueHandle<cudaEvent_t, cudaEventDestroy>;
template <class Handle, auto kDestroy>
class UniqueHandle {
 public:
  UniqueHandle() = default;
  explicit UniqueHandle(Handle handle) : handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept : handle_(std::exchange(other.handle_, Handle{})) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~UniqueHandle() {
    if (handle_ != Handle{}) static_cast<void>(kDestroy(handle_));
  }

  [[nodiscard]] Handle get() const { return handle_; }
  /// Where a C function stores the handle that it makes.
  [[nodiscard]] Handle* out() { return &handle_; }

 private:
  Handle handle_{};
};

}  // namespace reprise
