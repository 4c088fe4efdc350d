#include <fmt/format.h>

#include <filesystem>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "launcher/commands.hpp"

namespace reprise {

void init_command(const std::filesystem::path& run_file, const std::vector<std::string>& overrides) {
  const RunConfig config = parse_run_config("", "the defaults", overrides);
  require(!std::filesystem::exists(run_file), ErrorKind::kUsage,
          "{}: exists already and is left as it is; name another file, or remove it first", run_file.string());
  write_file_atomically(run_file, to_toml(config, true));
  fmt::print("wrote {}\nnext: set its paths, then `reprise check {}`\n", run_file.string(), run_file.string());
}

}  // namespace reprise
