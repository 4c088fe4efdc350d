#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "core/staging.hpp"

namespace reprise {

/// Lists that the host works out for a micro-batch and kernels read. The host fills page-locked memory; the copies go
/// on a queue of their own, so that they run beside the kernels of earlier micro-batches and layers, and nobody waits
/// but the kernels that read the list. On a CPU kernels read what the host wrote.
class HostArrays {
 public:
  HostArrays() = default;
  HostArrays(HostArrays&&) noexcept = default;
  HostArrays& operator=(HostArrays&&) noexcept = default;
  ~HostArrays();

  /// Uninitialised host memory.
  template <class T>
  [[nodiscard]] VectorView<T> vector(const Stream& stream, std::int64_t size, std::string_view what) {
    const auto bytes = size * static_cast<std::int64_t>(sizeof(T));
    return {reinterpret_cast<T*>(staging_.take(stream, bytes, what).host), size};
  }

  /// The values of `host`, which `vector` gave and nobody changes any more, where kernels can read them: behind the
  /// next make_ready.
  template <class T>
  [[nodiscard]] VectorView<const T> on_device(const Stream& stream, VectorView<const T> host) {
    if (stream.is_cpu() || host.empty()) return host;
    const VectorView<T> twin{reinterpret_cast<T*>(staging_.device_of(host.data)), host.size};
    copy_to_device<T>(copies(stream), host, twin);
    return twin;
  }
  /// Later work of `stream` waits for the copies.
  void make_ready(const Stream& stream);

  /// Gives all lists back. `stream` has been asked for the last work that reads them; the host does not wait for it.
  void reset(const Stream& stream) { staging_.give_back(stream); }

 private:
  /// The copies' queue, behind the zeroing of new memory.
  [[nodiscard]] Stream copies(const Stream& stream);

  std::unique_ptr<SideQueue> queue_;
  std::unique_ptr<StreamEvent> event_;
  Staging staging_{true};
  std::int64_t seen_allocations_ = 0;
};

}  // namespace reprise
