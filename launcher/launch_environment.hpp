#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reprise {

/// Who started this process, read from the environment before MPI is touched.
struct LaunchEnvironment {
  bool mpi = false;      ///< by mpirun, or by srun as one of several tasks
  bool pmix = false;     ///< the launcher serves PMIx
  std::string launcher;  ///< "mpirun", "srun" or ""
  int rank = 0, size = 1;
};
[[nodiscard]] LaunchEnvironment detect_launch();

/// The logical cores that this process may run on.
[[nodiscard]] std::vector<int> affinity_cores();
/// Cores that the control group's CPU quota is worth (containers); 0 = no quota.
[[nodiscard]] double quota_cores();

/// Threads that a process may use: its cores, each shared with the processes of the host that may run on it too, and
/// its part of the quota; at least 1. `affinities`: of all processes of the host, this one's among them.
[[nodiscard]] int threads_of_process(const std::vector<int>& mine, const std::vector<std::vector<int>>& affinities,
                                     double quota);

/// Tells this host from others.
[[nodiscard]] std::uint64_t host_id();

}  // namespace reprise
