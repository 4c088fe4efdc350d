#include "tests/support/cuda_emulation/block.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include "tests/support/cuda_emulation/fiber.hpp"

thread_local constinit uint3 threadIdx{}, blockIdx{};
thread_local constinit dim3 blockDim, gridDim;

namespace cuda_emulation {

thread_local constinit Thread* current_thread = nullptr;
thread_local constinit LaunchState* current_launch = nullptr;

namespace {

std::string text_of(const uint3& index) {
  std::string text = "(";
  text.append(std::to_string(index.x)).append(", ").append(std::to_string(index.y)).append(", ");
  return text.append(std::to_string(index.z)).append(")");
}

std::string text_of(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string headline() {
  return "kernel '" + current_launch->name + "', block " + text_of(blockIdx);
}

/// What the lanes of a warp bring to a collective, and what the last one gave them.
struct Warp {
  unsigned arrived = 0;
  alignas(16) unsigned char brought[kWarpSize * kLaneBytes];
  alignas(16) unsigned char results[kWarpSize * kLaneBytes];
};

/// Runs blocks on one host thread. Threads that have not started yet run one after another on the same fiber as long as
/// none of them waits, so kernels without barriers never switch.
class Scheduler {
 public:
  void run(LaunchState& launch, const std::function<void()>& kernel, const Settings& settings);
  /// At least `bytes`, kept until the next call.
  unsigned char* shared_memory(std::size_t bytes);

  void wait(Thread& thread, Thread::Wait reason, const char* what, std::source_location where);
  Warp& warp_of(const Thread& thread) { return *warps_[static_cast<std::size_t>(thread.number / kWarpSize)]; }
  Thread& lane_of(const Thread& thread, int lane) {
    return threads_[static_cast<std::size_t>(thread.number / kWarpSize * kWarpSize + lane)];
  }
  void release_warp(Thread& last);
  void release_barrier(const Thread& last);

 private:
  void begin_block(const LaunchState& launch, const Settings& settings);
  void run_block();
  void run_fiber();
  void run_thread(Thread& thread);
  static void enter(Thread& thread) {
    current_thread = &thread;
    threadIdx = thread.index;
  }
  [[nodiscard]] bool is_ready(const Thread& thread) const {
    return !thread.is_done && thread.wait == Thread::Wait::kNone;
  }
  void shuffle_order();
  [[noreturn]] void report_deadlock();
  void give_up();

  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<int> order_;
  std::size_t position_ = 0;  // in order_
  Order kind_ = Order::kAscending;
  std::mt19937_64 random_;
  std::size_t at_barrier_ = 0;
  std::exception_ptr failure_;
  std::vector<unsigned char> shared_;
};

thread_local Scheduler scheduler;

unsigned char* Scheduler::shared_memory(std::size_t bytes) {
  constexpr std::size_t kAlignment = 1024;
  if (shared_.size() < bytes + kAlignment) shared_.resize(bytes + kAlignment);
  const auto address = reinterpret_cast<std::uintptr_t>(shared_.data());
  return shared_.data() + (kAlignment - address % kAlignment) % kAlignment;
}

void Scheduler::begin_block(const LaunchState& launch, const Settings& settings) {
  const std::size_t count = std::size_t{launch.block.x} * launch.block.y * launch.block.z;
  if (threads_.size() != count) {
    threads_.resize(count);
    order_.resize(count);
    std::iota(order_.begin(), order_.end(), 0);
    kind_ = Order::kAscending;
  }
  while (warps_.size() * kWarpSize < count) warps_.push_back(std::make_unique<Warp>());
  for (auto& warp : warps_) warp->arrived = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.number = static_cast<int>(i);
    const auto number = static_cast<unsigned>(i);
    thread.index = {number % launch.block.x, number / launch.block.x % launch.block.y,
                    number / launch.block.x / launch.block.y};
    thread.is_done = false;
    thread.wait = Thread::Wait::kNone;
    thread.fiber = nullptr;
    thread.pending.clear();
    thread.group_ends.clear();
  }
  if (kind_ != settings.order) {
    std::sort(order_.begin(), order_.end());
    if (settings.order == Order::kDescending) std::reverse(order_.begin(), order_.end());
    kind_ = settings.order;
  }
  at_barrier_ = 0;
}

void Scheduler::run(LaunchState& launch, const std::function<void()>& kernel, const Settings& settings) {
  kernel_ = &kernel;
  gridDim = launch.grid;
  blockDim = launch.block;
  random_.seed(settings.seed);
  failure_ = nullptr;
  std::iota(order_.begin(), order_.end(), 0);
  kind_ = Order::kAscending;
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  std::vector<std::uint64_t> block_order;
  if (settings.order == Order::kShuffled) {
    block_order.resize(blocks);
    std::iota(block_order.begin(), block_order.end(), std::uint64_t{0});
    std::shuffle(block_order.begin(), block_order.end(), random_);
  }
  for (std::uint64_t i = 0; i < blocks; ++i) {
    std::uint64_t number = settings.order == Order::kDescending ? blocks - 1 - i : i;
    if (settings.order == Order::kShuffled) number = block_order[i];
    blockIdx = {static_cast<unsigned>(number % launch.grid.x),
                static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
                static_cast<unsigned>(number / launch.grid.x / launch.grid.y)};
    if (launch.shared_bytes > 0) std::memset(launch.shared, kPoison, launch.shared_bytes);
    begin_block(launch, settings);
    run_block();
  }
}

void Scheduler::shuffle_order() {
  if (kind_ == Order::kShuffled) std::shuffle(order_.begin(), order_.end(), random_);
}

void Scheduler::run_block() {
  for (bool moved = true; moved;) {
    moved = false;
    shuffle_order();
    for (position_ = 0; position_ < order_.size(); ++position_) {
      Thread& thread = threads_[static_cast<std::size_t>(order_[position_])];
      if (!is_ready(thread)) continue;
      moved = true;
      Fiber* fiber = thread.fiber;
      if (fiber == nullptr) {
        if (idle_.empty()) {
          fibers_.push_back(std::make_unique<Fiber>());
          fibers_.back()->job = [this] { run_fiber(); };
          idle_.push_back(fibers_.back().get());
        }
        fiber = idle_.back();
        idle_.pop_back();
        thread.fiber = fiber;
      }
      enter(thread);
      fiber->resume();
      current_thread = nullptr;
      if (failure_) {
        give_up();
        std::rethrow_exception(std::exchange(failure_, nullptr));
      }
    }
  }
  if (!std::all_of(threads_.begin(), threads_.end(), [](const Thread& thread) { return thread.is_done; })) {
    report_deadlock();
  }
}

/// The job of every fiber: the thread in hand, and then the next ones while they have not started either.
void Scheduler::run_fiber() {
  Fiber* const fiber = current_thread->fiber;
  run_thread(*current_thread);
  while (!failure_ && position_ + 1 < order_.size()) {
    Thread& next = threads_[static_cast<std::size_t>(order_[position_ + 1])];
    if (next.is_done || next.fiber != nullptr) break;
    ++position_;
    next.fiber = fiber;
    enter(next);
    run_thread(next);
  }
  idle_.push_back(fiber);
}

void Scheduler::run_thread(Thread& thread) {
  try {
    (*kernel_)();
    if (!thread.group_ends.empty() && thread.group_ends.back() > 0) fault("ends with async copies it never waited for");
    if (!thread.pending.empty()) fault("ends with async copies that were never committed");
  } catch (const std::exception&) {
    failure_ = std::current_exception();
  }
  thread.is_done = true;
  thread.fiber = nullptr;
}

void Scheduler::wait(Thread& thread, Thread::Wait reason, const char* what, std::source_location where) {
  thread.wait = reason;
  thread.what = what;
  thread.where = where;
}

void Scheduler::release_warp(Thread& last) {
  Warp& warp = warp_of(last);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((last.mask >> lane & 1U) == 0) continue;
    Thread& thread = lane_of(last, lane);
    if (thread.mask != last.mask || std::strcmp(thread.what, last.what) != 0) {
      fault("lanes of one warp meet in different collectives: lane " + std::to_string(lane) + " in " + thread.what +
            " (" + text_of(thread.where) + "), lane " + std::to_string(last.lane()) + " in " + last.what + " (" +
            text_of(last.where) + "), or with different masks");
    }
    const std::size_t offset = static_cast<std::size_t>(lane) * kLaneBytes;
    std::memcpy(warp.results + offset, warp.brought + offset, thread.lane_bytes);
    thread.wait = Thread::Wait::kNone;
  }
  warp.arrived &= ~last.mask;
}

void Scheduler::release_barrier(const Thread& last) {
  if (last.wait == Thread::Wait::kBarrier) {
    if (++at_barrier_ < threads_.size()) return;
    at_barrier_ = 0;
    for (const Thread& thread : threads_) {
      if (thread.where.line() != last.where.line() ||
          std::strcmp(thread.where.file_name(), last.where.file_name()) != 0) {
        fault("divergent barrier: thread " + text_of(thread.index) + " waits at " + text_of(thread.where) +
              ", thread " + text_of(last.index) + " at " + text_of(last.where));
      }
    }
    for (Thread& thread : threads_) thread.wait = Thread::Wait::kNone;
    return;
  }
  const auto waits_here = [&](const Thread& thread) {
    return !thread.is_done && thread.wait == Thread::Wait::kNamedBarrier && thread.barrier == last.barrier;
  };
  if (std::count_if(threads_.begin(), threads_.end(), waits_here) < last.expected) return;
  for (Thread& thread : threads_) {
    if (waits_here(thread)) thread.wait = Thread::Wait::kNone;
  }
}

void Scheduler::report_deadlock() {
  std::map<std::string, int> groups;
  for (const Thread& thread : threads_) {
    ++groups[thread.is_done ? std::string("have ended")
                            : "wait at " + std::string(thread.what) + " (" + text_of(thread.where) + ")"];
  }
  std::string message = headline() + ": divergent barrier:";
  for (const auto& [what, count] : groups) {
    message.append(" ").append(std::to_string(count)).append(" threads ").append(what).append(",");
  }
  message.pop_back();
  give_up();
  throw Fault(message);
}

void Scheduler::give_up() {
  for (Thread& thread : threads_) {
    if (thread.is_done || thread.fiber == nullptr) continue;
    thread.fiber->cancel();
    idle_.push_back(thread.fiber);
    thread.fiber = nullptr;
    thread.is_done = true;
  }
}

/// Suspends the running thread until it is released.
void pause(Thread& thread) {
  thread.fiber->pause();
}

Thread& running_thread(const char* what) {
  if (current_thread == nullptr) throw Fault(std::string(what) + " outside a kernel");
  return *current_thread;
}

}  // namespace

void run_grid(const LaunchState& launch, const std::function<void()>& kernel, const Settings& settings) {
  LaunchState state = launch;
  state.shared = scheduler.shared_memory(launch.shared_bytes);
  LaunchState* const outer = std::exchange(current_launch, &state);
  if (outer != nullptr) throw Fault("a launch inside a kernel");
  try {
    scheduler.run(state, kernel, settings);
  } catch (...) {
    current_launch = nullptr;
    throw;
  }
  current_launch = nullptr;
}

void prepare_host_thread() {
  (void)scheduler.shared_memory(0);
}

void fault(const std::string& message) {
  if (current_thread == nullptr) throw Fault(message);
  throw Fault(headline() + ", thread " + text_of(current_thread->index) + ": " + message);
}

void block_barrier(std::source_location where) {
  Thread& thread = running_thread("__syncthreads");
  scheduler.wait(thread, Thread::Wait::kBarrier, "__syncthreads", where);
  scheduler.release_barrier(thread);
  pause(thread);
}

void named_barrier(int id, int threads, std::source_location where) {
  Thread& thread = running_thread("a named barrier");
  if (id < 1 || id > 15) fault("named barrier " + std::to_string(id) + ": 1 to 15 exist");
  if (threads <= 0 || threads % kWarpSize != 0) {
    fault("named barrier for " + std::to_string(threads) + " threads: whole warps wait");
  }
  thread.barrier = id;
  thread.expected = threads;
  scheduler.wait(thread, Thread::Wait::kNamedBarrier, "a named barrier", where);
  scheduler.release_barrier(thread);
  pause(thread);
}

const unsigned char* warp_exchange(unsigned mask, const void* value, std::size_t bytes, const char* what,
                                   std::source_location where) {
  Thread& thread = running_thread(what);
  Warp& warp = scheduler.warp_of(thread);
  if (bytes > kLaneBytes) fault(std::string(what) + ": too many bytes for one lane");
  if ((mask >> thread.lane() & 1U) == 0) fault(std::string(what) + " by a lane that is not in its own mask");
  if (bytes > 0) std::memcpy(warp.brought + static_cast<std::size_t>(thread.lane()) * kLaneBytes, value, bytes);
  thread.mask = mask;
  thread.lane_bytes = static_cast<std::uint32_t>(bytes);
  scheduler.wait(thread, Thread::Wait::kWarp, what, where);
  warp.arrived |= 1U << thread.lane();
  if ((warp.arrived & mask) == mask) scheduler.release_warp(thread);
  pause(thread);
  return warp.results;
}

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t copied) {
  Thread& thread = running_thread("an async copy");
  if (bytes != 4 && bytes != 8 && bytes != 16) fault("async copy of " + std::to_string(bytes) + " bytes: 4, 8 or 16");
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
      (copied > 0 && reinterpret_cast<std::uintptr_t>(from) % bytes != 0)) {
    fault("async copy of " + std::to_string(bytes) + " bytes between unaligned addresses");
  }
  const auto* const shared = static_cast<const unsigned char*>(to);
  if (shared < current_launch->shared || shared + bytes > current_launch->shared + current_launch->shared_bytes) {
    fault("async copy to memory that is not the block's shared memory");
  }
  std::memset(to, kPoison, bytes);
  thread.pending.push_back({to, from, bytes, copied});
}

void commit_async_group() {
  Thread& thread = running_thread("a commit of async copies");
  thread.group_ends.push_back(thread.pending.size());
}

void wait_async_groups(int still_pending) {
  Thread& thread = running_thread("a wait for async copies");
  const auto groups = static_cast<std::ptrdiff_t>(thread.group_ends.size()) - still_pending;
  if (groups <= 0) return;
  const std::size_t end = thread.group_ends[static_cast<std::size_t>(groups - 1)];
  for (std::size_t i = 0; i < end; ++i) {
    const AsyncCopy& copy = thread.pending[i];
    if (copy.copied > 0) std::memcpy(copy.to, copy.from, copy.copied);
    if (copy.bytes > copy.copied) std::memset(static_cast<char*>(copy.to) + copy.copied, 0, copy.bytes - copy.copied);
  }
  thread.pending.erase(thread.pending.begin(), thread.pending.begin() + static_cast<std::ptrdiff_t>(end));
  thread.group_ends.erase(thread.group_ends.begin(), thread.group_ends.begin() + groups);
  for (std::size_t& group_end : thread.group_ends) group_end -= end;
}

}  // namespace cuda_emulation
