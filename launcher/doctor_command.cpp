#include <fmt/format.h>
#include <hdf5.h>
#include <mpi.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/gemm.hpp"
#include "launcher/commands.hpp"
#include "launcher/gpu.hpp"
#include "launcher/launch_environment.hpp"
#include "launcher/machine_info.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"
#include "parallel/self_communicator.hpp"

namespace reprise {

namespace {

constexpr const char* kBindHint = "start with `mpirun --bind-to none` (or set OMPI_MCA_hwloc_base_binding_policy=none)";

/// What was found wrong: problems stop a run, warnings cost it time or last words.
struct Findings {
  std::vector<std::string> problems, warnings;
};

/// A section of the report: its name, then rows of "what  value".
void print_section(const char* name, const TextTable& table) {
  fmt::print("{}\n{}", name, table.text());
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

void look_at_machine(Findings& findings) {
  const MachineInfo machine = read_machine_info();
  const auto cores = static_cast<int>(affinity_cores().size());
  const double quota = quota_cores();
  TextTable table("ll");
  table.add({"host", machine.host});
  table.add({"system", machine.system});
  table.add({"CPU", machine.cpu_model});
  table.add({"cores", fmt::format("{} online, {} in this process's affinity mask{}", machine.online_cores, cores,
                                  quota > 0.0 ? fmt::format(", quota of {:.1f}", quota) : "")});
  table.add({"kernels", simd_level_name()});
  table.add({"memory", fmt::format("{}, {} available{}", format_bytes(machine.memory_bytes),
                                   format_bytes(machine.available_bytes),
                                   machine.memory_limit_bytes > 0
                                       ? fmt::format(", limited to {}", format_bytes(machine.memory_limit_bytes))
                                       : "")});
  const FileSystemInfo shared = read_file_system("/dev/shm");
  table.add({"/dev/shm", fmt::format("{}, {} free", shared.type, format_bytes(shared.free_bytes))});
  print_section("machine", table);
  constexpr std::int64_t kSmallShared = std::int64_t{128} << 20;
  if (shared.free_bytes < kSmallShared) {
    findings.warnings.push_back(
        "/dev/shm has little room: ranks of one host exchange data there; in a container start "
        "it with --shm-size=1g");
  }
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find_first_of(",\n"));
}

void look_at_libraries(Findings& findings) {
  TextTable table("ll");
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> mpi{};
  int length = 0;
  MPI_Get_library_version(mpi.data(), &length);  // one of the few calls that are legal before MPI_Init
  const LaunchEnvironment launch = detect_launch();
  const std::string started =
      launch.mpi ? fmt::format("started by {} as rank {} of {}", launch.launcher, launch.rank, launch.size)
                 : std::string("started alone");
  table.add(
      {"MPI", fmt::format("{}; {}, PMIx {}", first_line(mpi.data()), started, launch.pmix ? "served" : "not served")});
  unsigned major = 0, minor = 0, release = 0;
  hbool_t threadsafe = false;
  H5get_libversion(&major, &minor, &release);
  H5is_library_threadsafe(&threadsafe);
  const bool deflate = H5Zfilter_avail(H5Z_FILTER_DEFLATE) > 0;
  table.add({"HDF5", fmt::format("{}.{}.{}, deflate {}{}", major, minor, release, deflate ? "yes" : "NO",
                                 threadsafe ? ", thread-safe" : "")});
  table.add({"BLAS", fmt::format("OpenBLAS, kernels for {}", gemm_kernel_name())});
  print_section("libraries", table);
  if (!deflate) findings.problems.push_back("HDF5 was built without the deflate filter: replay stores need it");
  if (!environment("OPENBLAS_CORETYPE").empty()) {
    findings.warnings.push_back(
        fmt::format("OPENBLAS_CORETYPE={} overrides the choice of BLAS kernels; unset it unless "
                    "it is faster here",
                    environment("OPENBLAS_CORETYPE")));
  }
  if (!launch.mpi && ::geteuid() == 0 && environment("OMPI_ALLOW_RUN_AS_ROOT").empty()) {
    findings.warnings.push_back(
        "mpirun refuses to run as root: set OMPI_ALLOW_RUN_AS_ROOT=1 and "
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or use another user");
  }
}

// ---- GPUs ----------------------------------------------------------------------------------------------------------

/// What `auto` makes of the GPUs that the ranks see, in words.
std::string plan_in_words(const std::vector<RankGpus>& ranks, const DeviceOptions& options) {
  const DevicePlan plan = plan_devices(ranks, options);
  if (!plan.gpu) return "ranks compute on CPUs";
  const auto per_host =
      std::count_if(ranks.begin(), ranks.end(), [&](const RankGpus& rank) { return rank.host == ranks.front().host; });
  const std::string ranks_text =
      ranks.size() == 1 ? std::string("one rank computes on GPU 0")
                        : fmt::format("{} ranks, {} on this host, compute on its GPUs 0-{}", ranks.size(), per_host,
                                      *std::max_element(plan.numbers.begin(), plan.numbers.end()));
  switch (plan.transport) {
    case DeviceTransport::kHost: return ranks_text + "; several would use " + (ranks[0].nccl ? "nccl" : "staged");
    case DeviceTransport::kNccl: return ranks_text + ", transport nccl";
    case DeviceTransport::kStaged: return ranks_text + ", transport staged (by way of host memory)";
  }
  return "";
}

void look_at_gpus(const std::vector<RankGpus>& ranks, const DeviceOptions& options, Findings& findings) {
  const GpuSupport support = gpu_support();
  TextTable table("ll");
  if (!support.built) {
    if (std::filesystem::exists("/dev/nvidiactl")) {
      findings.warnings.push_back(
          "this machine has an NVIDIA driver, but this program was built without CUDA: cmake --preset cuda");
    }
    table.add({"CUDA", "not built in"});
    return print_section("GPUs", table);
  }
  table.add({"CUDA", fmt::format("{} built in; driver {}{}", support.cuda_version,
                                 support.driver_cuda.empty() ? "none" : "for CUDA " + support.driver_cuda,
                                 support.driver.empty() ? "" : ", version " + support.driver)});
  table.add({"NCCL", support.nccl_version.empty() ? "not built in" : support.nccl_version});
  table.add({"cuDNN", "not needed: attention has kernels of its own"});
  const std::vector<GpuInfo> gpus = visible_gpus();
  for (std::size_t g = 0; g < gpus.size(); ++g) {
    table.add({fmt::format("GPU {}", g),
               fmt::format("{}, {}, compute capability {}", gpus[g].name, format_bytes(gpus[g].memory_bytes),
                           capability_text(gpus[g].capability))});
  }
  try {
    table.add({"auto", plan_in_words(ranks, options)});
  } catch (const Error& error) {
    findings.problems.emplace_back(error.what());
  }
  print_section("GPUs", table);
  if (gpus.empty()) {
    findings.warnings.push_back(
        "this program was built with CUDA but sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  constexpr int kOldest = 80;
  for (std::size_t g = 0; g < gpus.size(); ++g) {
    if (gpus[g].capability >= kOldest) continue;
    findings.problems.push_back(
        fmt::format("GPU {} has compute capability {}: 8.0 is the least that the kernels are "
                    "built for",
                    g, capability_text(gpus[g].capability)));
  }
}

void look_at_limits(Findings& findings) {
  struct Limit {
    const char* name;
    __rlimit_resource_t resource;
    bool bytes;
  };
  constexpr std::array<Limit, 5> kLimits = {{{"open files (-n)", RLIMIT_NOFILE, false},
                                             {"address space (-v)", RLIMIT_AS, true},
                                             {"file size (-f)", RLIMIT_FSIZE, true},
                                             {"locked memory (-l)", RLIMIT_MEMLOCK, true},
                                             {"core file (-c)", RLIMIT_CORE, true}}};
  constexpr rlim_t kFewFiles = 1024;
  TextTable table("ll");
  for (const Limit& limit : kLimits) {
    rlimit value{};
    ::getrlimit(limit.resource, &value);
    const bool unlimited = value.rlim_cur == RLIM_INFINITY;
    const auto number = static_cast<std::int64_t>(std::min<rlim_t>(value.rlim_cur, RLIM_INFINITY / 2));
    table.add({limit.name, unlimited ? "unlimited" : limit.bytes ? format_bytes(number) : format_count(number)});
    if (limit.resource == RLIMIT_NOFILE && value.rlim_cur < kFewFiles) {
      findings.warnings.push_back(fmt::format("only {} files may be open at a time: ulimit -n 4096", number));
    }
    if (!unlimited && (limit.resource == RLIMIT_AS || limit.resource == RLIMIT_FSIZE)) {
      findings.warnings.push_back(fmt::format("{} is limited to {}: large models will fail; ulimit {} unlimited",
                                              limit.name, format_bytes(number),
                                              limit.resource == RLIMIT_AS ? "-v" : "-f"));
    }
  }
  print_section("limits (ulimit)", table);
}

void look_at_environment() {
  constexpr std::array kNames = {"OMP_NUM_THREADS",        "OPENBLAS_NUM_THREADS",
                                 "OPENBLAS_CORETYPE",      "OMPI_MCA_hwloc_base_binding_policy",
                                 "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_rmaps_base_oversubscribe",
                                 "SLURM_JOB_ID",           "SLURM_NTASKS",
                                 "SLURM_CPUS_PER_TASK",    "TMPDIR"};
  TextTable table("ll");
  bool any = false;
  for (const char* name : kNames) {
    if (environment(name).empty()) continue;
    table.add({name, environment(name)});
    any = true;
  }
  if (any) print_section("environment", table);
  if (!environment("OMP_NUM_THREADS").empty() || !environment("OPENBLAS_NUM_THREADS").empty()) {
    fmt::print("  reprise sets its threads by the affinity mask (--threads), not by these variables\n");
  }
}

// ---- ranks ---------------------------------------------------------------------------------------------------------

/// "0-3,8".
std::string core_list(const std::vector<int>& cores) {
  std::string text;
  for (std::size_t i = 0; i < cores.size();) {
    std::size_t last = i;
    while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", cores[i]);
    if (last > i) text += fmt::format("-{}", cores[last]);
    i = last + 1;
  }
  return text;
}

void judge_binding(const std::vector<RankPlace>& ranks, int online_cores, Findings& findings) {
  std::map<std::uint64_t, std::vector<std::size_t>> hosts;
  for (std::size_t r = 0; r < ranks.size(); ++r) hosts[ranks[r].host].push_back(r);
  for (const auto& [host, members] : hosts) {
    std::set<int> used;
    for (const std::size_t r : members) used.insert(ranks[r].cores.begin(), ranks[r].cores.end());
    const auto cores = static_cast<int>(used.size());
    if (static_cast<int>(members.size()) > cores && cores < online_cores) {
      findings.warnings.push_back(
          fmt::format("{} ranks share {} of the host's {} cores: {}", members.size(), cores, online_cores, kBindHint));
    } else if (static_cast<int>(members.size()) > cores) {
      findings.warnings.push_back(
          fmt::format("{} ranks share {} cores: they will wait for each other", members.size(), cores));
    } else if (cores < online_cores) {
      findings.warnings.push_back(
          fmt::format("the ranks are bound to {} of the host's {} cores, the others stay idle: {}", cores, online_cores,
                      kBindHint));
    }
  }
}

void look_at_ranks(const std::vector<RankPlace>& ranks, Findings& findings) {
  constexpr std::size_t kShown = 64;
  TextTable table("rrll");
  table.add({"rank", "threads", "cores", ""});
  for (std::size_t r = 0; r < std::min(ranks.size(), kShown); ++r) {
    table.add({fmt::format("{}", r), fmt::format("{}", threads_of_rank(ranks, r)), core_list(ranks[r].cores),
               ranks[r].host == ranks[0].host ? "" : "another host"});
  }
  print_section("ranks", table);
  if (ranks.size() > kShown) fmt::print("  and {} more\n", ranks.size() - kShown);
  judge_binding(ranks, read_machine_info().online_cores, findings);
}

// ---- paths of a run file -------------------------------------------------------------------------------------------

void look_at_paths(const RunConfig& config, Findings& findings) {
  TextTable table("lll");
  const auto must_exist = [&](const std::string& key, const std::string& name, const std::filesystem::path& path) {
    const bool exists = std::filesystem::exists(path);
    table.add({key, name, exists ? "there" : "MISSING"});
    if (!exists) findings.problems.push_back(fmt::format("{} = \"{}\": {} does not exist", key, name, path.string()));
  };
  must_exist("model.path", config.model.path, std::filesystem::path(config.model.path) / "config.json");
  for (const std::string& prefix : config.data.train) must_exist("data.train", prefix, prefix + ".idx");
  for (const std::string& prefix : config.data.general) must_exist("data.general", prefix, prefix + ".idx");
  for (const std::string& prefix : config.data.eval) must_exist("data.eval", prefix, prefix + ".idx");
  constexpr std::int64_t kLittle = std::int64_t{1} << 30;
  const auto must_be_writable = [&](const std::string& key, const std::string& path) {
    const FileSystemInfo info = read_file_system(path);
    table.add({key, path,
               fmt::format("{}, {} free{}", info.type, format_bytes(info.free_bytes),
                           info.writable ? "" : ", NOT WRITABLE")});
    if (!info.writable) {
      findings.problems.push_back(fmt::format("{} = \"{}\": cannot write to {}", key, path, info.existing.string()));
    } else if (info.free_bytes < kLittle) {
      findings.warnings.push_back(fmt::format("{} = \"{}\": only {} free", key, path, format_bytes(info.free_bytes)));
    }
    if (info.type == "tmpfs") {
      findings.warnings.push_back(
          fmt::format("{} = \"{}\" lies in memory (tmpfs) and is gone after a restart", key, path));
    }
  };
  if (!config.replay.store.empty()) must_be_writable("replay.store", config.replay.store);
  must_be_writable("run.folder", config.run.folder);
  print_section("paths", table);
}

void print_findings(const Findings& findings) {
  fmt::print("\n");
  for (const std::string& problem : findings.problems) fmt::print("problem: {}\n", wrapped(problem, 100, 2));
  for (const std::string& warning : findings.warnings) fmt::print("warning: {}\n", wrapped(warning, 100, 2));
  if (findings.problems.empty()) fmt::print("{}\n", findings.warnings.empty() ? "all is well" : "no problem");
}

}  // namespace

int doctor_command(const std::filesystem::path& run_file, Communicator* world) {
  std::vector<RankPlace> ranks;
  if (world != nullptr) ranks = gather_rank_places(*world);
  const auto alone = make_self_communicator();
  const std::vector<RankGpus> gpus = gather_rank_gpus(world != nullptr ? *world : *alone);
  Findings findings;
  if (world == nullptr || world->rank() == 0) {
    fmt::print("reprise {}\n", REPRISE_VERSION);
    look_at_machine(findings);
    look_at_libraries(findings);
    std::optional<RunConfig> config;
    if (!run_file.empty()) config = read_run_config(run_file, {});
    look_at_gpus(gpus, config ? config->device_options() : DeviceOptions{}, findings);
    look_at_limits(findings);
    look_at_environment();
    if (world != nullptr) look_at_ranks(ranks, findings);
    if (config) look_at_paths(*config, findings);
    print_findings(findings);
  }
  auto problems = static_cast<std::int64_t>(findings.problems.size());
  if (world != nullptr) world->broadcast<std::int64_t>(Stream(CpuStream{}), {&problems, 1}, 0);
  return static_cast<int>(problems);
}

}  // namespace reprise
