#include <cuda_runtime.h>

#include <array>
#include <fstream>

#include "core/cuda/check.hpp"
#include "core/cuda_stream.hpp"
#include "core/error.hpp"
#include "core/random.hpp"
#include "launcher/gpu.hpp"
#include "parallel/nccl_communicator.hpp"

namespace reprise {

namespace {

/// 12080 is 12.8.
std::string version_text(int version) {
  return version <= 0 ? "" : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

GpuInfo info_of(int number) {
  const CudaDeviceInfo device = cuda_device_info(number);
  std::array<char, 32> bus{};
  REPRISE_CUDA(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), number));
  return {hash_bytes(bus.data(), bus.size()), device.name, device.memory_bytes, device.capability};
}

class CudaGpu final : public Gpu {
 public:
  explicit CudaGpu(int number) : queue_(number), info_(info_of(number)) {}

  [[nodiscard]] Stream stream() const override { return Stream(queue_.stream()); }
  [[nodiscard]] const GpuInfo& info() const override { return info_; }
  [[nodiscard]] std::int64_t peak_memory_bytes() const override {
    cudaMemPool_t pool = nullptr;
    std::uint64_t bytes = 0;
    REPRISE_CUDA(cudaDeviceGetDefaultMemPool(&pool, queue_.stream().device));
    REPRISE_CUDA(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &bytes));
    return static_cast<std::int64_t>(bytes);
  }

 private:
  CudaQueue queue_;
  GpuInfo info_;
};

}  // namespace

GpuSupport gpu_support() {
  int runtime = 0, driver = 0;
  REPRISE_CUDA(cudaRuntimeGetVersion(&runtime));
  if (cudaDriverGetVersion(&driver) != cudaSuccess) static_cast<void>(cudaGetLastError());  // no driver
  GpuSupport support;
  support.built = true;
  support.cuda_version = version_text(runtime);
  support.driver_cuda = version_text(driver);
  support.nccl_version = nccl_version();
  std::ifstream("/sys/module/nvidia/version") >> support.driver;
  return support;
}

std::vector<GpuInfo> visible_gpus() {
  std::vector<GpuInfo> gpus;
  for (int number = 0; number < num_cuda_devices(); ++number) gpus.push_back(info_of(number));
  return gpus;
}

std::unique_ptr<Gpu> open_gpu(int number) {
  return std::make_unique<CudaGpu>(number);
}

}  // namespace reprise
