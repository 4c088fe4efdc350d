#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/arena.hpp"
#include "core/stream.hpp"
#include "core/thread_pool.hpp"
#include "launcher/run_config.hpp"
#include "parallel/context.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

/// What one rank of a running command has: its communicator, grid, threads, stream and arena.
class Session {
 public:
  /// Collective. `threads` = CPU threads of this rank.
  Session(Communicator& world, std::int64_t tensor_size, bool sequence_parallel, int threads);

  [[nodiscard]] Context context() { return {stream_, groups_, arena_, sequence_parallel_}; }
  [[nodiscard]] const ProcessGroups& groups() const { return groups_; }
  [[nodiscard]] Communicator& world() { return *groups_.world; }
  [[nodiscard]] const Stream& stream() const { return stream_; }
  [[nodiscard]] Arena& arena() { return arena_; }
  [[nodiscard]] bool is_first() const { return groups_.world->rank() == 0; }

 private:
  ThreadPool pool_;
  Stream stream_;
  Arena arena_;
  ProcessGroups groups_;
  bool sequence_parallel_;
};

/// How the ranks of a command are started.
struct RankOptions {
  std::string transport = "auto";  ///< auto: mpi under mpirun or srun, else self
  int thread_ranks = 1;            ///< transport "thread": ranks of this process
  int threads = 0;                 ///< per rank; 0 = cores of the affinity mask / ranks on this host
};

/// Runs body(world, threads) on every rank; under mpirun or srun MPI is started before anything can fail.
/// Throws Error(kUsage) for options that contradict each other or the launcher; run_ranked does it, too.
void check_transport(const RankOptions& options);

/// Runs body(world, threads) on every rank and returns the exit code of the process. An Error on any rank is printed
/// once ("rank 3: ...", without the rank where all of them failed alike) and ends all ranks with its code: MPI_Abort,
/// or the poisoned thread group.
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
