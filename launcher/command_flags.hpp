#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "launcher/device_plan.hpp"
#include "launcher/run_config.hpp"
#include "launcher/session.hpp"

namespace reprise {

// Flags that several commands share.

/// How many ranks and threads a command has.
struct RankFlags {
  int ranks = 1;
  int threads = 0;

  void add_to(CLI::App& command);
  [[nodiscard]] RankOptions options(const std::string& transport, std::int64_t tensor) const;
};

/// The grid and device of a command without a run file.
struct GridFlags {
  RankFlags ranks;
  std::int64_t tensor = 1;
  DeviceOptions device;

  void add_to(CLI::App& command);
};

/// A run file and what the command line changes in it.
struct RunFileFlags {
  std::string file;
  std::vector<std::string> overrides;

  void add_to(CLI::App& command);
  [[nodiscard]] RunConfig read() const { return read_run_config(file, overrides); }
};

}  // namespace reprise
