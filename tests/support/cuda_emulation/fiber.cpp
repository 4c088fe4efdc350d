#include "tests/support/cuda_emulation/fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/preallocated.hpp>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

using Stack = boost::context::stack_context;

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = std::size_t{256} << 10;  // redzones make frames much larger
#else
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
#endif

struct FreeStacks {
  std::mutex mutex;
  std::vector<void*> tops;
};

FreeStacks& free_stacks() {
  static auto* const instance = new FreeStacks;  // outlives the fibers of every thread
  return *instance;
}

Stack take_stack() {
  Stack stack;
  stack.size = kStackBytes;
  {
    const std::lock_guard lock(free_stacks().mutex);
    if (!free_stacks().tops.empty()) {
      stack.sp = free_stacks().tops.back();
      free_stacks().tops.pop_back();
      return stack;
    }
  }
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const mapping = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0) throw std::bad_alloc();
  stack.sp = static_cast<char*>(mapping) + kStackBytes + page;
  return stack;
}

void give_stack_back(const Stack& stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(static_cast<char*>(stack.sp) - stack.size, stack.size);
#endif
  const std::lock_guard lock(free_stacks().mutex);
  free_stacks().tops.push_back(stack.sp);
}

/// What boost calls when a context ends; the stack belongs to the Fiber.
struct KeepStack {
  void deallocate(Stack&) noexcept {}
};

}  // namespace

Fiber::Fiber() : stack_(take_stack()) {
  start();
}

Fiber::~Fiber() {
  end();
  give_stack_back(stack_);
}

// The address sanitizer has to know which stack the processor is on.
void Fiber::announce_switch_to_scheduler([[maybe_unused]] bool is_end) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(is_end ? nullptr : &fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
#endif
}

void Fiber::announce_arrival() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

void Fiber::start() {
  is_cancelled_ = false;
  fake_stack_ = nullptr;
  auto body = [this](boost::context::fiber&& scheduler) {
    scheduler_ = std::move(scheduler);
    announce_arrival();
    try {
      while (!is_cancelled_) {
        job();
        pause();
      }
    } catch (const Cancelled&) {
    }
    announce_switch_to_scheduler(true);
    return std::move(scheduler_);
  };
  context_ = boost::context::fiber(std::allocator_arg, boost::context::preallocated(stack_.sp, stack_.size, stack_),
                                   KeepStack{}, std::move(body));
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, static_cast<char*>(stack_.sp) - stack_.size, stack_.size);
#endif
  context_ = std::move(context_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::pause() {
  announce_switch_to_scheduler(false);
  scheduler_ = std::move(scheduler_).resume();
  announce_arrival();
  if (is_cancelled_) throw Cancelled{};
}

void Fiber::end() {
  is_cancelled_ = true;
  resume();
}

void Fiber::cancel() {
  end();
  start();
}

}  // namespace cuda_emulation
