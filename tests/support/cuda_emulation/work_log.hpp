#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cuda_emulation {

/// How often the calling thread has had to wait for a device: for work of a late stream that was not done, or for a
/// copy from or to memory that is not page-locked.
[[nodiscard]] std::int64_t host_waits();

/// What a thread asks its streams for, in that order.
struct Work {
  const void* stream = nullptr;  ///< null for a range
  std::string name;              ///< a kernel's, "wait" for another stream's event, or that of a range that begins
};

/// Notes the calling thread's work while it lives; one at a time.
class WorkLog {
 public:
  WorkLog();
  ~WorkLog();
  WorkLog(const WorkLog&) = delete;
  WorkLog& operator=(const WorkLog&) = delete;

  [[nodiscard]] const std::vector<Work>& work() const { return work_; }

 private:
  friend void note_work(const void* stream, const std::string& name);
  std::vector<Work> work_;
};

// For the runtime.
void note_host_wait();
void note_work(const void* stream, const std::string& name);

}  // namespace cuda_emulation
