#include "launcher/gpu.hpp"

#include "core/error.hpp"

// The program without CUDA; see gpu_cuda.cpp.

namespace reprise {

GpuSupport gpu_support() {
  return {};
}

std::vector<GpuInfo> visible_gpus() {
  return {};
}

std::unique_ptr<Gpu> open_gpu(int number) {
  fail(ErrorKind::kUsage, "GPU {}: this program was built without CUDA", number);
}

}  // namespace reprise
