#include "core/stopwatch.hpp"

#include <chrono>
#include <utility>

namespace reprise {

namespace {

class HostStopwatch final : public Stopwatch {
 public:
  void start() override { start_ = Clock::now(); }
  void stop() override { sum_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  double take_seconds() override { return std::exchange(sum_, 0.0); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_;
  double sum_ = 0.0;
};

}  // namespace

std::unique_ptr<Stopwatch> make_stopwatch(const CpuStream&) {
  return std::make_unique<HostStopwatch>();
}

}  // namespace reprise
