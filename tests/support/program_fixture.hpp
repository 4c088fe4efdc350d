#pragma once

#include <algorithm>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file_io.hpp"
#include "tests/support/run_fixture.hpp"
#include "tests/support/run_program.hpp"

namespace reprise {

/// RunFixture whose run file is given to the program itself, alone or under mpirun. The build defines REPRISE_PROGRAM
/// and REPRISE_MPIEXEC.
struct ProgramFixture : RunFixture {
  using RunFixture::RunFixture;

  std::string program = REPRISE_PROGRAM;

  /// The words that start `reprise words...` on that many ranks.
  [[nodiscard]] std::vector<std::string> command(const std::vector<std::string>& words, int ranks) const {
    std::vector<std::string> all;
    if (ranks > 1) all = {REPRISE_MPIEXEC, "-n", std::to_string(ranks)};
    all.push_back(program);
    all.insert(all.end(), words.begin(), words.end());
    return all;
  }

  [[nodiscard]] RunningProgram::Options options(const std::string& fault = "") const {
    RunningProgram::Options options;
    options.environment = {{"XDG_CACHE_HOME", folder / "cache"},
                           {"REPRISE_FAULT", fault},
                           {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                           {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                           {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                           {"OMPI_MCA_hwloc_base_binding_policy", "none"},
                           {"OMPI_MCA_mpi_yield_when_idle", "1"},
                           {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"}};
    options.output = folder / "printed.txt";
    return options;
  }

  [[nodiscard]] ProgramResult run(const std::vector<std::string>& words, int ranks = 1,
                                  const std::string& fault = "") const {
    return run_program(command(words, ranks), options(fault));
  }

  /// `reprise <name> run.toml --threads 1 overrides...`, the run file being `config` as it is now.
  [[nodiscard]] std::vector<std::string> run_words(const std::string& name,
                                                   const std::vector<std::string>& more = {}) const {
    const std::filesystem::path file = folder / (name + ".toml");
    write_file_atomically(file, to_toml(config));
    std::vector<std::string> words{name, file, "--threads", "1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  [[nodiscard]] ProgramResult train(int ranks = 1, const std::string& fault = "",
                                    const std::vector<std::string>& more = {}) const {
    return run(run_words("train", more), ranks, fault);
  }
  [[nodiscard]] ProgramResult collect(int ranks = 1, const std::string& fault = "",
                                      const std::vector<std::string>& more = {}) const {
    return run(run_words("collect", more), ranks, fault);
  }
};

/// The lines of a metrics file without what may differ between equal runs: times, rates, memory.
inline std::vector<nlohmann::json> comparable_metrics(const std::filesystem::path& run) {
  std::vector<nlohmann::json> lines;
  std::istringstream text(read_text_file(run / "metrics.jsonl", ErrorKind::kData));
  for (std::string line; std::getline(text, line);) {
    if (text.eof()) break;  // a line that is being written
    lines.push_back(nlohmann::json::parse(line));
    for (const char* key : {"head_ms", "step_ms", "tokens_per_second", "memory_bytes"}) lines.back().erase(key);
  }
  return lines;
}

/// Master weights and moments of a checkpoint, byte for byte, by file.
inline std::map<std::string, std::string> checkpoint_tensors(const std::filesystem::path& run, std::int64_t step) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints" / fmt::format("step-{:08}", step))) {
    if (entry.path().extension() != ".safetensors") continue;
    files[entry.path().filename()] = read_text_file(entry.path(), ErrorKind::kCheckpoint);
  }
  return files;
}

}  // namespace reprise
