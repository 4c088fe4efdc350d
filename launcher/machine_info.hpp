#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace reprise {

/// What this host is, read from /proc and /sys.
struct MachineInfo {
  std::string host, system, cpu_model;
  int online_cores = 0;
  std::int64_t memory_bytes = 0, available_bytes = 0;
  std::int64_t memory_limit_bytes = 0;  ///< of the control group; 0 = none
};
[[nodiscard]] MachineInfo read_machine_info();

/// The file system that a path lies on, or would: that of its nearest existing parent.
struct FileSystemInfo {
  std::filesystem::path existing;  ///< the path itself or its nearest existing parent
  std::string type;                ///< "ext4", "xfs", "tmpfs", ..., or its number
  std::int64_t free_bytes = 0;     ///< for this user
  bool writable = false;           ///< files can be made there
};
[[nodiscard]] FileSystemInfo read_file_system(const std::filesystem::path& path);

}  // namespace reprise
