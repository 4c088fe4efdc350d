#include "launcher/device_plan.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "launcher/gpu.hpp"
#include "launcher/launch_environment.hpp"

namespace reprise {

namespace {

/// Whether the ranks compute on GPUs.
bool wants_gpus(const std::vector<RankGpus>& ranks, const std::string& device) {
  if (device == "cpu") return false;
  const bool must = device == "cuda";
  require(must || device == "auto", ErrorKind::kUsage,
          "parallel.device = \"{}\": must be one of \"auto\", \"cpu\", \"cuda\"", device);
  if (!ranks[0].cuda) {
    require(!must, ErrorKind::kUsage,
            "parallel.device = \"cuda\": this program was built without CUDA; build it with `cmake --preset cuda`");
    return false;
  }
  const auto is_blind = [](const RankGpus& rank) { return rank.ids.empty(); };
  const auto blind = std::find_if(ranks.begin(), ranks.end(), is_blind);
  if (blind == ranks.end()) return true;
  require(must || std::all_of(ranks.begin(), ranks.end(), is_blind), ErrorKind::kUsage,
          "rank {} sees no GPU, others do; look at nvidia-smi and CUDA_VISIBLE_DEVICES there, or set parallel.device = "
          "\"cpu\"",
          blind - ranks.begin());
  require(!must, ErrorKind::kUsage,
          "parallel.device = \"cuda\": rank {} sees no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES (`reprise "
          "doctor` shows what the program sees)",
          blind - ranks.begin());
  return false;
}

/// Two ranks that would compute on the same GPU.
std::optional<std::pair<std::size_t, std::size_t>> sharers(const std::vector<RankGpus>& ranks,
                                                           const std::vector<int>& numbers) {
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::size_t> owners;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const std::uint64_t id = ranks[r].ids[static_cast<std::size_t>(numbers[r])];
    const auto [owner, is_new] = owners.emplace(std::pair{ranks[r].host, id}, r);
    if (!is_new) return std::pair{owner->second, r};
  }
  return std::nullopt;
}

}  // namespace

std::vector<RankGpus> gather_rank_gpus(Communicator& world) {
  constexpr std::size_t kMaxGpus = 64, kWords = 4 + kMaxGpus;  // host, CUDA, NCCL, GPUs, their ids
  const GpuSupport support = gpu_support();
  const std::vector<GpuInfo> gpus = visible_gpus();
  std::vector<std::uint64_t> mine{host_id(), support.built ? 1U : 0U, support.nccl_version.empty() ? 0U : 1U,
                                  std::min(gpus.size(), kMaxGpus)};
  mine.resize(kWords, 0);
  for (std::size_t g = 0; g < mine[3]; ++g) mine[4 + g] = gpus[g].id;
  std::vector<std::uint64_t> all(kWords * static_cast<std::size_t>(world.size()));
  world.all_gather<std::uint64_t>(Stream(CpuStream{}), mine, all);
  std::vector<RankGpus> ranks;
  for (auto word = all.begin(); word != all.end(); word += static_cast<std::ptrdiff_t>(kWords)) {
    ranks.push_back({word[0], word[1] != 0, word[2] != 0, {word + 4, word + 4 + static_cast<std::ptrdiff_t>(word[3])}});
  }
  return ranks;
}

DevicePlan plan_devices(const std::vector<RankGpus>& ranks, const DeviceOptions& options) {
  DevicePlan plan;
  const std::string& transport = options.transport;
  plan.gpu = wants_gpus(ranks, options.device);
  if (!plan.gpu) {
    require(transport != "nccl" && transport != "staged", ErrorKind::kUsage,
            "parallel.transport = \"{}\" moves the memory of GPUs, but this job computes on CPUs (parallel.device = "
            "\"{}\"{}); use \"auto\"",
            transport, options.device, options.device == "auto" ? ": no GPU is seen" : "");
    return plan;
  }
  std::map<std::uint64_t, int> ranks_of_host;
  for (const RankGpus& rank : ranks) {
    plan.numbers.push_back(ranks_of_host[rank.host]++ % static_cast<int>(rank.ids.size()));
  }
  const auto shared = sharers(ranks, plan.numbers);
  if (transport == "nccl") {
    require(ranks[0].nccl, ErrorKind::kUsage,
            "parallel.transport = \"nccl\": this program was built without NCCL; use \"staged\", which goes by way of "
            "host memory");
    require(!shared, ErrorKind::kUsage,
            "parallel.transport = \"nccl\": ranks {} and {} share a GPU, which NCCL refuses; start one rank a GPU, or "
            "use \"staged\"",
            shared ? shared->first : 0, shared ? shared->second : 0);
    plan.transport = DeviceTransport::kNccl;
  } else if (transport == "auto") {
    const bool nccl = ranks[0].nccl && !shared;
    if (ranks.size() > 1) plan.transport = nccl ? DeviceTransport::kNccl : DeviceTransport::kStaged;
  } else {  // by host memory, however the ranks were started
    plan.transport = transport == "self" ? DeviceTransport::kHost : DeviceTransport::kStaged;
  }
  return plan;
}

const char* name_of(DeviceTransport transport) {
  switch (transport) {
    case DeviceTransport::kHost: return "host";
    case DeviceTransport::kNccl: return "nccl";
    case DeviceTransport::kStaged: return "staged";
  }
  return "?";
}

}  // namespace reprise
