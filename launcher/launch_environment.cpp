#include "launcher/launch_environment.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <map>
#include <thread>

#include "core/error.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

/// A number of the environment; `fallback` when it is not set.
int number_of(const char* name, int fallback) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? fallback : std::atoi(text);
}

}  // namespace

LaunchEnvironment detect_launch() {
  LaunchEnvironment launch;
  const bool mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  // A batch script itself is task 0 of nothing: only a step of several tasks was meant to be a parallel job.
  const bool srun = std::getenv("SLURM_PROCID") != nullptr && number_of("SLURM_STEP_NUM_TASKS", 1) > 1;
  launch.pmix = std::getenv("PMIX_RANK") != nullptr;
  launch.mpi = mpirun || launch.pmix || srun;
  launch.launcher = mpirun ? "mpirun" : srun || (launch.pmix && std::getenv("SLURM_PROCID") != nullptr) ? "srun" : "";
  launch.rank = number_of("OMPI_COMM_WORLD_RANK", number_of("PMIX_RANK", srun ? number_of("SLURM_PROCID", 0) : 0));
  launch.size = number_of("OMPI_COMM_WORLD_SIZE", number_of("SLURM_STEP_NUM_TASKS", 1));
  return launch;
}

void check_process_manager() {
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool has_process_manager = std::getenv("PMIX_RANK") != nullptr || std::getenv("PMI_RANK") != nullptr ||
                                   std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  require(tasks == nullptr || std::atoi(tasks) <= 1 || has_process_manager, ErrorKind::kCommunication,
          "srun started {} tasks without PMIx, so they cannot find each other: use `srun --mpi=pmix` "
          "(`srun --mpi=list` shows what this cluster has) or `mpirun` inside the allocation",
          tasks == nullptr ? "" : tasks);
}

std::uint64_t host_id() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  const std::string text = std::string(name.data()) + boot;
  return hash_bytes(text.data(), text.size());
}

std::vector<int> affinity_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(static_cast<std::size_t>(core), &set)) cores.push_back(core);
    }
  } else {  // more than CPU_SETSIZE cores
    for (unsigned core = 0; core < std::max(1U, std::thread::hardware_concurrency()); ++core) {
      cores.push_back(static_cast<int>(core));
    }
  }
  return cores;
}

double quota_cores() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0.0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0.0) return 0.0;
  return std::atof(quota.c_str()) / period;
}

int threads_of_process(const std::vector<int>& mine, const std::vector<std::vector<int>>& affinities, double quota) {
  std::map<int, int> sharers;
  for (const auto& cores : affinities) {
    for (const int core : cores) ++sharers[core];
  }
  double share = 0.0;
  for (const int core : mine) share += 1.0 / std::max(1, sharers[core]);
  if (quota > 0.0) share = std::min(share, quota / static_cast<double>(std::max<std::size_t>(1, affinities.size())));
  constexpr double kRounding = 1e-6;
  return std::max(1, static_cast<int>(share + kRounding));
}

std::vector<RankPlace> gather_rank_places(Communicator& world) {
  constexpr std::size_t kMaxCores = 1024, kWords = 1 + kMaxCores / 64;  // host, then one bit a core
  std::vector<std::uint64_t> mine(kWords, 0);
  mine[0] = host_id();
  for (const int core : affinity_cores()) {
    const auto index = static_cast<std::size_t>(core);
    if (index < kMaxCores) mine[1 + index / 64] |= std::uint64_t{1} << (index % 64);
  }
  std::vector<std::uint64_t> all(kWords * static_cast<std::size_t>(world.size()));
  world.all_gather<std::uint64_t>(Stream(CpuStream{}), mine, all);
  std::vector<RankPlace> places;
  for (std::size_t begin = 0; begin < all.size(); begin += kWords) {
    RankPlace& place = places.emplace_back();
    place.host = all[begin];
    for (std::size_t core = 0; core < kMaxCores; ++core) {
      if ((all[begin + 1 + core / 64] >> (core % 64)) & 1) place.cores.push_back(static_cast<int>(core));
    }
  }
  return places;
}

int threads_of_rank(const std::vector<RankPlace>& places, std::size_t rank) {
  std::vector<std::vector<int>> affinities;
  for (const RankPlace& place : places) {
    if (place.host == places[rank].host) affinities.push_back(place.cores);
  }
  return threads_of_process(places[rank].cores, affinities, quota_cores());
}

}  // namespace reprise
