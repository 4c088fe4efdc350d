#pragma once

#include <boost/context/fiber.hpp>
#include <cstddef>
#include <functional>

namespace cuda_emulation {

/// A second stack of a host thread. `resume` runs it until it calls `pause` or comes to the end of its job; after a job
/// it can be given another one. Stacks have a guard page below and are kept for the life of the process: making one
/// costs far more than running on it.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// By the scheduler. A fiber without a job in hand starts `job`.
  void resume();
  /// By the code that runs on the fiber: back to the scheduler.
  void pause();
  /// Unwinds whatever is suspended on it; the fiber can be used again.
  void cancel();

  std::function<void()> job;

 private:
  struct Cancelled {};

  void start();
  void end();
  void announce_switch_to_scheduler(bool is_end);
  void announce_arrival();

  boost::context::stack_context stack_;
  boost::context::fiber context_;    // the fiber, while suspended
  boost::context::fiber scheduler_;  // whoever resumed it, while it runs
  bool is_cancelled_ = false;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace cuda_emulation
