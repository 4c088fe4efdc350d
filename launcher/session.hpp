#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/arena.hpp"
#include "core/stream.hpp"
#include "core/stream_event.hpp"
#include "core/thread_pool.hpp"
#include "launcher/device_plan.hpp"
#include "launcher/gpu.hpp"
#include "parallel/context.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

/// What one rank of a running command has: its communicators, grid, threads, device, stream and arena.
class Session {
 public:
  /// Chooses the device (plan_devices). Collective. `threads` = CPU threads of this rank.
  Session(Communicator& world, std::int64_t tensor_size, bool sequence_parallel, int threads,
          const DeviceOptions& device = {});

  [[nodiscard]] Context context() { return {stream_, groups_, arena_, sequence_parallel_}; }
  /// For collectives that run beside the layers' work: on a GPU with a queue of its own, whose work goes first, and an
  /// arena of its own; on a CPU the same as context().
  [[nodiscard]] Context communication() {
    return side_ ? Context{side_->stream, groups_, side_->arena, sequence_parallel_} : context();
  }
  [[nodiscard]] const ProcessGroups& groups() const { return groups_; }
  [[nodiscard]] Communicator& world() const { return *groups_.world; }
  /// Of the device that the rank computes on.
  [[nodiscard]] const Stream& stream() const { return stream_; }
  /// This rank's CPU threads: for collectives and work on host memory, whatever the device.
  [[nodiscard]] const Stream& host() const { return host_; }
  [[nodiscard]] Arena& arena() { return arena_; }
  [[nodiscard]] bool is_first() const { return groups_.world->rank() == 0; }

  /// Null on a CPU.
  [[nodiscard]] const GpuInfo* gpu() const { return gpu_ ? &gpu_->info() : nullptr; }
  /// " on NVIDIA H100 (staged)", or nothing on a CPU.
  [[nodiscard]] std::string on_device() const;
  /// How device memory travels: "host" on CPUs, "nccl" or "staged".
  [[nodiscard]] const char* device_transport() const { return name_of(transport_); }
  /// Peak of its GPU; 0 on a CPU.
  [[nodiscard]] std::int64_t peak_device_bytes() const { return gpu_ ? gpu_->peak_memory_bytes() : 0; }
  /// Peak memory: resident of this process, and on its GPU.
  [[nodiscard]] std::int64_t peak_memory_bytes() const;

 private:
  ThreadPool pool_;
  Stream host_;
  std::unique_ptr<Gpu> gpu_;  // before what lies on its stream
  Stream stream_;
  Arena arena_;
  struct Side {
    std::unique_ptr<SideQueue> queue;
    Stream stream;
    Arena arena;
  };
  std::unique_ptr<Side> side_;  // null on a CPU
  DeviceTransport transport_ = DeviceTransport::kHost;
  std::unique_ptr<Communicator> device_world_;  // null where the job's own is enough
  ProcessGroups groups_;
  bool sequence_parallel_;
};

/// How the ranks of a command are started.
struct RankOptions {
  std::string transport = "auto";  ///< of the run file: "nccl" and "staged" start ranks as "auto" does
  int thread_ranks = 1;            ///< > 1: ranks as threads of this process
  int threads = 0;                 ///< per rank; 0 = cores of the affinity mask / ranks on this host
};

/// Throws Error(kUsage) for options that contradict each other or the launcher; run_ranked does it, too.
void check_transport(const RankOptions& options);

/// Runs body(world, threads) on every rank and returns the exit code of the process. auto: MPI under mpirun or srun,
/// where it is started before anything can fail, else threads where several ranks are asked for. An Error on any rank
/// is printed once ("rank 3: ...", without the rank where all of them failed alike) and ends all ranks with its code:
/// MPI_Abort, or the poisoned thread group.
[[nodiscard]] int run_ranked(int argc, char** argv, const RankOptions& options,
                             const std::function<void(Communicator& world, int threads)>& body);

/// Runs body, whose failure is printed like that of a rank, and returns the exit code of the process: for what one
/// process does without ranks.
[[nodiscard]] int report_failures(const std::function<int()>& body);

/// Set by SIGUSR1 and SIGTERM: finish the step, write a checkpoint, end with kPreempted.
void install_stop_signals();
[[nodiscard]] bool stop_requested();

/// Peak resident memory of this process.
[[nodiscard]] std::int64_t peak_memory_bytes();

}  // namespace reprise
