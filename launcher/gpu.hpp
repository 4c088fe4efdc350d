#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/stream.hpp"

namespace reprise {

/// What this program was built with and what the machine's driver is. Empty texts = not there.
struct GpuSupport {
  bool built = false;        ///< with CUDA
  std::string cuda_version;  ///< of the runtime that is built in, "13.0"
  std::string driver_cuda;   ///< the newest CUDA version that the driver knows
  std::string driver;        ///< version of the driver
  std::string nccl_version;  ///< built in
};
[[nodiscard]] GpuSupport gpu_support();

/// A GPU that this process sees.
struct GpuInfo {
  std::uint64_t id = 0;  ///< of its place on the host's bus: the same in every process that sees it
  std::string name;
  std::int64_t memory_bytes = 0;
  int capability = 0;  ///< 90 for sm_90
};
/// "9.0" for 90.
[[nodiscard]] inline std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}
/// By device number; none without CUDA, a driver or a GPU.
[[nodiscard]] std::vector<GpuInfo> visible_gpus();

/// A GPU in use by the calling thread, and its queue. Outlives everything on its stream.
class Gpu {
 public:
  virtual ~Gpu() = default;
  [[nodiscard]] virtual Stream stream() const = 0;
  [[nodiscard]] virtual const GpuInfo& info() const = 0;
  /// The most device memory that this process has held here.
  [[nodiscard]] virtual std::int64_t peak_memory_bytes() const = 0;
};
/// Throws Error(kUsage) where there is no such GPU.
[[nodiscard]] std::unique_ptr<Gpu> open_gpu(int number);

}  // namespace reprise
