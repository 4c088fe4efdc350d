#include <cuda_runtime.h>

#include <cstddef>
#include <vector>

#include "core/cuda/check.hpp"
#include "core/cuda/handle.hpp"
#include "core/stopwatch.hpp"

namespace reprise {

namespace {

class DeviceStopwatch final : public Stopwatch {
 public:
  explicit DeviceStopwatch(const CudaStream& stream) : stream_(stream) {}

  void start() override {
    if (used_ == marks_.size()) marks_.emplace_back();
    marks_[used_].begin.record(stream_);
  }
  void stop() override { marks_[used_++].end.record(stream_); }
  double take_seconds() override {
    double milliseconds = 0.0;
    for (std::size_t i = 0; i < used_; ++i) {
      float part = 0.0f;
      REPRISE_CUDA(cudaEventSynchronize(marks_[i].end.event.get()));
      REPRISE_CUDA(cudaEventElapsedTime(&part, marks_[i].begin.event.get(), marks_[i].end.event.get()));
      milliseconds += static_cast<double>(part);
    }
    used_ = 0;
    return 1e-3 * milliseconds;
  }

 private:
  struct Mark {
    UniqueHandle<cudaEvent_t, cudaEventDestroy> event;
    Mark() { REPRISE_CUDA(cudaEventCreateWithFlags(event.out(), cudaEventDefault)); }
    void record(const CudaStream& stream) const { REPRISE_CUDA(cudaEventRecord(event.get(), stream.handle)); }
  };
  struct Pair {
    Mark begin, end;
  };

  CudaStream stream_;
  std::vector<Pair> marks_;  // kept from step to step
  std::size_t used_ = 0;
};

}  // namespace

std::unique_ptr<Stopwatch> make_stopwatch(const CudaStream& stream) {
  return std::make_unique<DeviceStopwatch>(stream);
}

}  // namespace reprise
