#pragma once

#include <memory>

#include "core/stream.hpp"

namespace reprise {

/// Adds up how long a stream's work takes between `start` and `stop`, by the clock of its device: with CUDA neither
/// makes the host wait. Used by one host thread; must not outlive the stream's queue.
class Stopwatch {
 public:
  virtual ~Stopwatch() = default;
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  virtual void start() = 0;
  virtual void stop() = 0;
  /// The sum since the last call, which begins anew. The host waits for the work of the last `stop`.
  [[nodiscard]] virtual double take_seconds() = 0;

 protected:
  Stopwatch() = default;
};

[[nodiscard]] std::unique_ptr<Stopwatch> make_stopwatch(const CpuStream& stream);
[[nodiscard]] std::unique_ptr<Stopwatch> make_stopwatch(const CudaStream& stream);
[[nodiscard]] inline std::unique_ptr<Stopwatch> make_stopwatch(const Stream& stream) {
  return stream.visit([](const auto& device) { return make_stopwatch(device); });
}

}  // namespace reprise
