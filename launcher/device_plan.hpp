#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace reprise {

/// The keys of the run file that say where ranks compute and how device memory travels between them.
struct DeviceOptions {
  std::string device = "auto";     ///< auto: a GPU where the program knows CUDA and sees one; cpu; cuda
  std::string transport = "auto";  ///< auto | self | thread | mpi | nccl | staged
  std::string log_folder{};        ///< where NCCL's ranks leave what they last asked for, when it fails; empty: nowhere
};

/// What one rank could compute on.
struct RankGpus {
  std::uint64_t host = 0;
  bool cuda = false, nccl = false;  ///< built in
  std::vector<std::uint64_t> ids;   ///< of the GPUs that it sees, by device number (GpuInfo::id)
};
/// That of all ranks, by rank. Collective; one all-gather.
[[nodiscard]] std::vector<RankGpus> gather_rank_gpus(Communicator& world);

enum class DeviceTransport : std::uint8_t {
  kHost,    ///< what the ranks of the job exchange is host memory, by the transport that they were started with
  kNccl,    ///< device memory by NCCL
  kStaged,  ///< device memory by way of host memory
};
struct DevicePlan {
  bool gpu = false;
  std::vector<int> numbers;  ///< by rank: the device number in the rank's own process; empty on CPUs
  DeviceTransport transport = DeviceTransport::kHost;
};

/// The same on every rank, from what all of them have. The GPUs that a rank sees are taken in turn by the ranks of its
/// host. transport auto: nothing for one rank, NCCL where it is built in and no two ranks share a GPU, staged
/// otherwise. Throws Error(kUsage) that says what is missing.
[[nodiscard]] DevicePlan plan_devices(const std::vector<RankGpus>& ranks, const DeviceOptions& options);

[[nodiscard]] const char* name_of(DeviceTransport transport);

}  // namespace reprise
