#include "tests/support/cuda_emulation/work_log.hpp"

namespace cuda_emulation {

namespace {

thread_local std::int64_t waits = 0;
thread_local WorkLog* log = nullptr;

}  // namespace

std::int64_t host_waits() {
  return waits;
}

WorkLog::WorkLog() {
  log = this;
}

WorkLog::~WorkLog() {
  log = nullptr;
}

void note_host_wait() {
  ++waits;
}

void note_work(const void* stream, const std::string& name) {
  if (log != nullptr) log->work_.push_back({stream, name});
}

}  // namespace cuda_emulation
