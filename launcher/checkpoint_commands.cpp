#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "launcher/checkpoint.hpp"
#include "launcher/commands.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"

namespace reprise {

namespace {

std::filesystem::path require_checkpoints(const std::filesystem::path& run) {
  const std::filesystem::path root = run / "checkpoints";
  require(std::filesystem::is_directory(root), ErrorKind::kCheckpoint,
          "{}: there is no such folder; name a run folder (run.folder of the run file)", root.string());
  return root;
}

std::string marks_of(const CheckpointInfo& info) {
  std::string marks = info.is_latest ? "latest" : "";
  if (info.is_best) marks += marks.empty() ? "best" : ", best";
  return marks;
}

void print_json(const std::vector<CheckpointInfo>& checkpoints) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const CheckpointInfo& info : checkpoints) {
    list.push_back({{"folder", info.folder.string()},
                    {"step", info.step},
                    {"bytes", info.bytes},
                    {"tensor", info.tensor},
                    {"data", info.data},
                    {"latest", info.is_latest},
                    {"best", info.is_best}});
  }
  fmt::print("{}\n", list.dump(2));
}

/// Prints what is wrong with a checkpoint; the number of problems.
std::size_t verify_one(const std::filesystem::path& folder) {
  const std::vector<std::string> problems = verify_checkpoint(folder);
  fmt::print("{}: {}\n", folder.string(), problems.empty() ? "sound" : "DAMAGED");
  for (const std::string& problem : problems) fmt::print("  {}\n", problem);
  return problems.size();
}

}  // namespace

void checkpoint_list_command(const std::filesystem::path& run, bool json) {
  const std::vector<CheckpointInfo> checkpoints = list_checkpoints(require_checkpoints(run));
  if (json) return print_json(checkpoints);
  if (checkpoints.empty()) fmt::print("{}: no checkpoint yet\n", run.string());
  TextTable table("rlrll");
  table.add({"step", "layout", "size", "", "folder"});
  for (const CheckpointInfo& info : checkpoints) {
    table.add({format_count(info.step), fmt::format("tensor {} x data {}", info.tensor, info.data),
               format_bytes(info.bytes), marks_of(info), info.folder.string()});
  }
  if (!checkpoints.empty()) fmt::print("{}", table.text());
}

void checkpoint_verify_command(const std::filesystem::path& run_or_checkpoint) {
  std::vector<std::filesystem::path> folders;
  if (std::filesystem::exists(run_or_checkpoint / "manifest.json")) {
    folders.push_back(run_or_checkpoint);
  } else {
    for (const CheckpointInfo& info : list_checkpoints(require_checkpoints(run_or_checkpoint))) {
      folders.push_back(info.folder);
    }
    require(!folders.empty(), ErrorKind::kCheckpoint, "{}: no finished checkpoint there", run_or_checkpoint.string());
  }
  std::size_t damaged = 0;
  for (const auto& folder : folders) damaged += verify_one(folder) > 0 ? 1 : 0;
  require(damaged == 0, ErrorKind::kCheckpoint,
          "{} of {} checkpoints are damaged; training goes on from the newest sound one by itself", damaged,
          folders.size());
}

}  // namespace reprise
