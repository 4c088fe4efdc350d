#include "launcher/checkpoint.hpp"

#include <algorithm>
#include <functional>
#include <set>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/host_parts.hpp"
#include "core/sha256.hpp"
#include "launcher/checkpoint_manifest.hpp"
#include "launcher/safetensors.hpp"
#include "parallel/agree.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

const Stream kHost{CpuStream{}};

/// Runs what changes the disk; the system's own exceptions become Error(kDisk).
void on_disk(const std::function<void()>& change) {
  try {
    change();
  } catch (const fs::filesystem_error& error) {
    fail(ErrorKind::kDisk, "checkpoint: {}", error.what());
  }
}

/// Makes the folder to write into and clears away what an earlier process left half written or half deleted.
void start_folder(const fs::path& root, const fs::path& partial) {
  fs::create_directories(root);
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("step-", 0) == 0 && entry.path().extension() == ".tmp") leftovers.push_back(entry.path());
  }
  for (const fs::path& leftover : leftovers) fs::remove_all(leftover);
  fs::create_directory(partial);
}

StoredFile write_rank_file(const Stream& stream, const fs::path& partial, int rank,
                           const std::vector<ParameterSpec>& specs, const std::vector<OwnedPiece>& owned) {
  StoredFile file;
  file.name = fmt::format("rank-{:05}.safetensors", rank);
  std::vector<SafetensorsTensor> tensors;
  std::vector<VectorView<const float>> values;
  for (const OwnedPiece& piece : owned) {
    if (piece.local.size() == 0) continue;
    const ParameterSpec& spec = specs[static_cast<std::size_t>(piece.parameter)];
    const StoredPiece stored{
        piece.parameter, {spec.row_begin, spec.row_end}, {spec.col_begin, spec.col_end}, piece.local};
    const VectorView<const float> kinds[] = {piece.master, piece.exp_avg, piece.exp_avg_sq};
    for (std::size_t k = 0; k < std::size(kStateKinds); ++k) {
      REPRISE_CHECK(kinds[k].size == piece.local.size(), "{} of \"{}\" holds {} elements of {}", kStateKinds[k],
                    spec.name, kinds[k].size, piece.local.size());
      tensors.push_back({tensor_name(spec.name, kStateKinds[k], stored), "F32", {piece.local.size()}});
      values.push_back(kinds[k]);
    }
    file.pieces.push_back(stored);
  }
  SafetensorsWriter writer(partial / file.name, tensors);
  HostParts<float> parts(stream, kPartElements, "a checkpoint");
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    parts.read(values[t], [&](std::int64_t, VectorView<const float> part) { writer.write(tensors[t].name, part); });
  }
  writer.finish();
  file.bytes = static_cast<std::int64_t>(fs::file_size(partial / file.name));
  file.sha256 = sha256_file(partial / file.name, ErrorKind::kDisk);
  return file;
}

std::vector<StoredFile> gather_files(Communicator& world, const StoredFile& mine) {
  const std::string text = to_json(mine);
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(world.size()));
  world.all_gather<std::int64_t>(kHost, std::vector<std::int64_t>{static_cast<std::int64_t>(text.size())}, sizes);
  std::int64_t total = 0;
  for (const std::int64_t size : sizes) total += size;
  std::vector<std::uint8_t> texts(static_cast<std::size_t>(total));
  world.all_gather<std::uint8_t>(kHost, std::vector<std::uint8_t>(text.begin(), text.end()), texts, sizes);
  std::vector<StoredFile> files;
  auto begin = texts.begin();
  for (const std::int64_t size : sizes) {
    files.push_back(stored_file_from_json(std::string(begin, begin + size), "a rank's part of the manifest"));
    begin += size;
  }
  return files;
}

/// The folder gets its name in one rename; an older one of the same step steps aside and comes back should that fail.
void publish(const fs::path& root, const fs::path& partial, const fs::path& folder,
             const CheckpointManifest& manifest) {
  write_file_atomically(partial / "manifest.json", to_json(manifest));
  const fs::path aside = folder.string() + ".old.tmp";
  const bool replaces = fs::exists(folder);
  if (replaces) fs::rename(folder, aside);
  try {
    fs::rename(partial, folder);
  } catch (const fs::filesystem_error&) {
    if (replaces) fs::rename(aside, folder);
    throw;
  }
  fsync_folder(root);
  write_file_atomically(root / "LATEST", folder.filename().string() + "\n");
  if (replaces) fs::remove_all(aside);
}

std::vector<std::int64_t> finished_steps(const fs::path& root) {
  std::vector<std::int64_t> steps;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(root, absent)) {
    const std::int64_t step = step_of_folder_name(entry.path().filename().string());
    if (step >= 0) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// The checkpoint just written is kept whatever `keep` says: it is the newest whose hashes were taken from the disk.
/// Later steps belong to a course that this run has left; found by the next resume, they would lead back to it.
/// What is not wanted any more vanishes from the list by a rename and is then deleted. A folder that cannot be deleted
/// (another process reads it) is no reason to stop training: the next save tries again.
void drop_old(const fs::path& root, const TrainerState& state, std::int64_t keep) {
  const auto steps = finished_steps(root);
  std::set<std::int64_t> wanted{state.step};
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (*step < state.step && static_cast<std::int64_t>(wanted.size()) < keep) wanted.insert(*step);
  }
  wanted.insert(state.best_step);
  for (const std::int64_t step : steps) {
    if (wanted.count(step) != 0) continue;
    const fs::path folder = root / step_folder_name(step), dropped = folder.string() + ".tmp";
    std::error_code ignored;
    fs::rename(folder, dropped, ignored);
    if (!ignored) fs::remove_all(dropped, ignored);
  }
}

CheckpointManifest describe(const ProcessGroups& groups, const TrainerState& state,
                            const std::vector<ParameterSpec>& specs, std::vector<StoredFile> files) {
  CheckpointManifest manifest{groups.tp_size(), groups.dp_size(), state, {}, std::move(files)};
  for (const ParameterSpec& spec : specs) {
    manifest.parameters.push_back({spec.name, spec.global_rows, spec.global_cols, spec.frozen});
  }
  const auto problems = coverage_problems(manifest);
  REPRISE_CHECK(problems.empty(), "step {}: {}", state.step, problems.front());
  return manifest;
}

}  // namespace

std::filesystem::path save_checkpoint(const Stream& stream, const ProcessGroups& groups,
                                      const std::filesystem::path& root, const TrainerState& state,
                                      const std::vector<ParameterSpec>& specs, const std::vector<OwnedPiece>& owned,
                                      std::int64_t keep) {
  Communicator& world = *groups.world;
  const bool first = world.rank() == 0;
  const fs::path folder = root / step_folder_name(state.step), partial = folder.string() + ".tmp";
  const auto rank_0 = [&](const std::function<void()>& change) {
    agree(world, [&] {
      if (first) on_disk(change);
    });
  };
  try {
    rank_0([&] { start_folder(root, partial); });
    StoredFile mine;
    agree(world, [&] { on_disk([&] { mine = write_rank_file(stream, partial, world.rank(), specs, owned); }); });
    auto files = gather_files(world, mine);
    rank_0([&] { publish(root, partial, folder, describe(groups, state, specs, std::move(files))); });
  } catch (const Error&) {
    std::error_code ignored;
    if (first) fs::remove_all(partial, ignored);
    throw;
  }
  rank_0([&] { drop_old(root, state, keep); });
  return folder;
}

std::vector<CheckpointInfo> list_checkpoints(const std::filesystem::path& root) {
  std::string latest;
  std::error_code absent;
  if (fs::exists(root / "LATEST", absent)) latest = read_text_file(root / "LATEST", ErrorKind::kCheckpoint, 4096);
  std::vector<CheckpointInfo> result;
  std::int64_t best = -1;
  for (const std::int64_t step : finished_steps(root)) {
    CheckpointInfo info{root / step_folder_name(step), step};
    info.is_latest = info.folder.filename().string() + "\n" == latest;
    try {
      const CheckpointManifest manifest = read_manifest(info.folder);
      for (const StoredFile& file : manifest.files) info.bytes += file.bytes;
      info.tensor = manifest.tensor;
      info.data = manifest.data;
      best = manifest.state.best_step;
    } catch (const Error&) {
      // Damaged: it stays in the list without a layout, and `verify` says what is wrong.
    }
    result.push_back(std::move(info));
  }
  for (CheckpointInfo& info : result) info.is_best = info.step == best;
  return result;
}

}  // namespace reprise
