#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

// Between host memory and the memory of a stream's device. On a CPU stream both are the same and these are copies.

namespace detail {
void* allocate_host_bytes(const CpuStream& stream, std::int64_t bytes, std::string_view what);
void* allocate_host_bytes(const CudaStream& stream, std::int64_t bytes, std::string_view what);
void free_host_bytes(const CpuStream& stream, void* pointer, std::int64_t bytes) noexcept;
void free_host_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes) noexcept;

enum class Direction : std::uint8_t { kToDevice, kToHost, kWithinDevice };
void copy_bytes(const CpuStream& stream, const void* from, void* to, std::int64_t bytes, Direction direction);
void copy_bytes(const CudaStream& stream, const void* from, void* to, std::int64_t bytes, Direction direction);
void zero_bytes(const CpuStream& stream, void* pointer, std::int64_t bytes);
void zero_bytes(const CudaStream& stream, void* pointer, std::int64_t bytes);
void synchronize(const CpuStream& stream);
void synchronize(const CudaStream& stream);
void check_sizes(std::int64_t from, std::int64_t to);

template <class T>
void copy(const Stream& stream, VectorView<const T> from, VectorView<T> to, Direction direction) {
  check_sizes(from.size, to.size);
  stream.visit([&](const auto& device) {
    copy_bytes(device, from.data, to.data, from.size * static_cast<std::int64_t>(sizeof(T)), direction);
  });
}
}  // namespace detail

/// The host waits until all work that `stream` was asked for is done.
inline void synchronize(const Stream& stream) {
  stream.visit([](const auto& device) { detail::synchronize(device); });
}

/// device = host, in the order of the stream's work. `host` may be reused at once, unless it is a HostBuffer's: then
/// only when the copy is done.
template <class T>
void copy_to_device(const Stream& stream, VectorView<const T> host, VectorView<T> device) {
  detail::copy<T>(stream, host, device, detail::Direction::kToDevice);
}
/// host = device, there on return: the host waits for the stream.
template <class T>
void copy_to_host(const Stream& stream, VectorView<const T> device, VectorView<T> host) {
  detail::copy<T>(stream, device, host, detail::Direction::kToHost);
  synchronize(stream);
}
/// The same without waiting, into a HostBuffer: there when the stream has come so far (CudaEvent, synchronize).
template <class T>
void start_copy_to_host(const Stream& stream, VectorView<const T> device, VectorView<T> host_buffer) {
  detail::copy<T>(stream, device, host_buffer, detail::Direction::kToHost);
}
/// to = from, both on the device, not overlapping.
template <class T>
void copy_on_device(const Stream& stream, VectorView<const T> from, VectorView<T> to) {
  detail::copy<T>(stream, from, to, detail::Direction::kWithinDevice);
}
/// All bytes of `values` = 0.
template <class T>
void zero(const Stream& stream, VectorView<T> values) {
  stream.visit([&](const auto& device) {
    detail::zero_bytes(device, values.data, values.size * static_cast<std::int64_t>(sizeof(T)));
  });
}

/// The values of a device view, copied to the host; waits.
template <class T>
[[nodiscard]] std::vector<std::remove_const_t<T>> to_host(const Stream& stream, VectorView<T> device) {
  std::vector<std::remove_const_t<T>> host(static_cast<std::size_t>(device.size));
  copy_to_host<std::remove_const_t<T>>(stream, device, host);
  return host;
}
/// The values of a device view where host code can read them: the view itself on a CPU stream, else a copy (waits). For
/// small results; see HostParts for big ones.
template <class T>
class HostView {
 public:
  HostView(const Stream& stream, VectorView<const T> device) : view_(device) {
    if (stream.is_cpu()) return;
    copy_ = to_host(stream, device);
    view_ = copy_;
  }
  HostView(HostView&&) noexcept = default;
  HostView& operator=(HostView&&) noexcept = default;

  [[nodiscard]] VectorView<const T> view() const { return view_; }

 private:
  std::vector<T> copy_;
  VectorView<const T> view_;
};
template <class T>
[[nodiscard]] HostView<std::remove_const_t<T>> on_host(const Stream& stream, VectorView<T> device) {
  return {stream, device};
}
/// A buffer on the device with these values.
template <class T>
[[nodiscard]] Buffer<T> to_device(const Stream& stream, const std::vector<T>& host, std::string_view what = "values") {
  Buffer<T> buffer(stream, static_cast<std::int64_t>(host.size()), what);
  copy_to_device<T>(stream, host, buffer.view());
  return buffer;
}

/// Host memory for traffic with the stream's device: page-locked with CUDA, so that copies run beside other work.
/// Uninitialised. Move-only; must not be freed while a copy from or to it is on its way.
template <class T>
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(const Stream& stream, std::int64_t size, std::string_view what) : stream_(stream), size_(size) {
    data_ = static_cast<T*>(
        stream.visit([&](const auto& device) { return detail::allocate_host_bytes(device, bytes(), what); }));
  }
  HostBuffer(HostBuffer&& other) noexcept
      : stream_(other.stream_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~HostBuffer() {
    stream_.visit([&](const auto& device) { detail::free_host_bytes(device, data_, bytes()); });
  }

  [[nodiscard]] VectorView<T> view() { return {data_, size_}; }
  [[nodiscard]] VectorView<const T> view() const { return {data_, size_}; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] std::int64_t bytes() const { return size_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  Stream stream_{CpuStream{}};
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace reprise
