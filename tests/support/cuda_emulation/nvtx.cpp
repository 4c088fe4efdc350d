#include <nvtx3/nvToolsExt.h>

#include <string>
#include <vector>

#include "tests/support/cuda_emulation/nvtx_ranges.hpp"
#include "tests/support/cuda_emulation/work_log.hpp"

namespace {

thread_local std::vector<std::string> ranges;

}  // namespace

nvtxDomainHandle_t nvtxDomainCreateA(const char*) {
  return nullptr;
}

int nvtxDomainRangePushEx(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  ranges.emplace_back(attributes->message.ascii);
  cuda_emulation::note_work(nullptr, ranges.back());
  return static_cast<int>(ranges.size()) - 1;
}

int nvtxDomainRangePop(nvtxDomainHandle_t) {
  if (ranges.empty()) return -2;
  ranges.pop_back();
  return static_cast<int>(ranges.size());
}

namespace cuda_emulation {

std::string innermost_range() {
  return ranges.empty() ? "?" : ranges.back();
}

}  // namespace cuda_emulation
