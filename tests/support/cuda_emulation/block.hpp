#pragma once

#include <cuda_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/cuda_emulation/settings.hpp"

// What device code knows by these names.
extern thread_local constinit uint3 threadIdx, blockIdx;
extern thread_local constinit dim3 blockDim, gridDim;

namespace cuda_emulation {

/// A kernel did what a GPU would not forgive; the message names kernel, block and threads.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int kWarpSize = 32;
constexpr std::size_t kLaneBytes = 64;   // the most that a lane brings to a warp collective
constexpr unsigned char kPoison = 0xFF;  // NaN as a floating-point number, -1 as an integer

/// A copy that has been asked for and not yet been made.
struct AsyncCopy {
  void* to;
  const void* from;
  std::size_t bytes, copied;  // the rest of `bytes` is zeroed
};

struct Fiber;

/// One device thread, as kernels see it and as the scheduler does.
struct Thread {
  enum class Wait : std::uint8_t { kNone, kBarrier, kNamedBarrier, kWarp };

  uint3 index{};
  int number = 0;  ///< in its block
  bool is_done = false;
  Wait wait = Wait::kNone;
  Fiber* fiber = nullptr;  ///< where it is suspended; null before its start

  const char* what = "";  ///< the collective it waits in
  std::source_location where;
  unsigned mask = 0;                    ///< lanes, of a warp collective
  int barrier = 0, expected = 0;        ///< of a named barrier
  std::uint32_t lane_bytes = 0;         ///< brought to a warp collective
  std::vector<AsyncCopy> pending;       ///< copies of groups that are complete but not waited for, and of the open one
  std::vector<std::size_t> group_ends;  ///< in `pending`

  [[nodiscard]] int lane() const { return number % kWarpSize; }
};

/// What a launch fixes for all its threads.
struct LaunchState {
  std::string name;  ///< innermost NVTX range of the host thread that launched
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  unsigned char* shared = nullptr;
};

/// The running device thread and its launch; null outside kernels.
extern thread_local constinit Thread* current_thread;
extern thread_local constinit LaunchState* current_launch;

/// Runs every block of the grid, one after another, on the calling host thread. Throws Fault.
void run_grid(const LaunchState& launch, const std::function<void()>& kernel, const Settings& settings);
/// Makes what the calling host thread runs kernels with, so that it outlives every stream that the thread owns from
/// then on: a late stream still has work when it is destroyed with the thread.
void prepare_host_thread();

// What kernels call; each throws Fault when misused.

/// Waits for all threads of the block. Every thread must come, at the same place of the source.
void block_barrier(std::source_location where);
/// Waits for `threads` threads of the block at barrier `id` (1 to 15).
void named_barrier(int id, int threads, std::source_location where);
/// Publishes `bytes` of this lane, waits for the lanes of `mask` and returns all their values: lane i's at
/// i * kLaneBytes. They stay until this lane's next wait.
const unsigned char* warp_exchange(unsigned mask, const void* value, std::size_t bytes, const char* what,
                                   std::source_location where);
/// Poisons the destination; the copy is made by the wait that must see it, at the latest moment.
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t copied);
void commit_async_group();
/// Makes the copies of all but the newest `still_pending` groups.
void wait_async_groups(int still_pending);
[[noreturn]] void fault(const std::string& message);

}  // namespace cuda_emulation
