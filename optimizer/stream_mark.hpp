#pragma once

#include <functional>

#include "core/stream.hpp"

namespace reprise {

/// Marks the work that `stream` has been asked for so far; the returned function makes the host wait for it, and for
/// nothing that was asked for later. On a CPU there is nothing to wait for.
[[nodiscard]] std::function<void()> mark_work(const CpuStream& stream);
[[nodiscard]] std::function<void()> mark_work(const CudaStream& stream);

[[nodiscard]] inline std::function<void()> mark_work(const Stream& stream) {
  return stream.visit([](const auto& device) { return mark_work(device); });
}

}  // namespace reprise
