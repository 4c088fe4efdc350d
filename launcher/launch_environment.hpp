#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace reprise {

/// Who started this process, read from the environment before MPI is touched.
struct LaunchEnvironment {
  bool mpi = false;      ///< by mpirun, or by srun as one of several tasks
  bool pmix = false;     ///< the launcher serves PMIx
  std::string launcher;  ///< "mpirun", "srun" or ""
  int rank = 0, size = 1;
};
[[nodiscard]] LaunchEnvironment detect_launch();

/// Throws Error(kCommunication) with the remedy where srun started several tasks without a PMIx plugin: MPI would make
/// as many worlds of one rank of them, or fail deep inside its start. To be called before MPI starts.
void check_process_manager();

/// Tells this host from others.
[[nodiscard]] std::uint64_t host_id();

/// The logical cores that this process may run on.
[[nodiscard]] std::vector<int> affinity_cores();
/// Cores that the control group's CPU quota is worth (containers); 0 = no quota.
[[nodiscard]] double quota_cores();

/// Where a rank runs: its host and the cores that it may use.
struct RankPlace {
  std::uint64_t host = 0;
  std::vector<int> cores;
};
/// The places of all ranks, by rank. Collective; one all-gather.
[[nodiscard]] std::vector<RankPlace> gather_rank_places(Communicator& world);
/// threads_of_process for one of them.
[[nodiscard]] int threads_of_rank(const std::vector<RankPlace>& places, std::size_t rank);

/// Threads that a process may use: its cores, each shared with the processes of the host that may run on it too, and
/// its part of the quota; at least 1. `affinities`: of all processes of the host, this one's among them.
[[nodiscard]] int threads_of_process(const std::vector<int>& mine, const std::vector<std::vector<int>>& affinities,
                                     double quota);

}  // namespace reprise
