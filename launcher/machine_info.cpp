#include "launcher/machine_info.hpp"

#include <fmt/format.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>

namespace reprise {

namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

/// "MemTotal:  16384 kB" of /proc/meminfo, in bytes.
std::int64_t memory_of(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name + ":")) continue;
    std::int64_t kilobytes = 0;
    std::istringstream(line.substr(name.size() + 1)) >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

std::string file_system_name(long type) {
  struct Known {
    long type;
    const char* name;
  };
  constexpr std::array<Known, 12> kKnown = {{{0xEF53, "ext4"},
                                             {0x58465342, "xfs"},
                                             {0x9123683E, "btrfs"},
                                             {0x2FC12FC1, "zfs"},
                                             {0x01021994, "tmpfs"},
                                             {0x794C7630, "overlay"},
                                             {0x6969, "nfs"},
                                             {0x0BD00BD0, "lustre"},
                                             {0x47504653, "gpfs"},
                                             {0x19830326, "beegfs"},
                                             {0x00C36400, "ceph"},
                                             {0x65735546, "fuse"}}};
  for (const Known& known : kKnown) {
    if (known.type == type) return known.name;
  }
  return fmt::format("file system {:#x}", type);
}

}  // namespace

MachineInfo read_machine_info() {
  MachineInfo info;
  utsname name{};
  ::uname(&name);
  info.host = name.nodename;
  info.system = fmt::format("{} {} {}", name.sysname, name.release, name.machine);
  info.cpu_model = cpu_model();
  info.online_cores = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  info.memory_bytes = memory_of("MemTotal");
  info.available_bytes = memory_of("MemAvailable");
  std::ifstream("/sys/fs/cgroup/memory.max") >> info.memory_limit_bytes;  // "max" leaves 0
  return info;
}

FileSystemInfo read_file_system(const std::filesystem::path& path) {
  FileSystemInfo info;
  std::error_code ignored;
  info.existing = std::filesystem::absolute(path, ignored).lexically_normal();
  while (!std::filesystem::exists(info.existing, ignored) && info.existing.has_relative_path()) {
    info.existing = info.existing.parent_path();
  }
  struct statfs status {};
  if (::statfs(info.existing.c_str(), &status) != 0) return info;
  info.type = file_system_name(static_cast<long>(status.f_type));
  info.free_bytes = static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_bsize);
  info.writable =
      std::filesystem::is_directory(info.existing, ignored) && ::access(info.existing.c_str(), W_OK | X_OK) == 0;
  return info;
}

}  // namespace reprise
