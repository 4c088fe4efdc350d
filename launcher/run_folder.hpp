#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/checkpoint.hpp"
#include "launcher/folder_lock.hpp"
#include "launcher/run_config.hpp"
#include "launcher/session.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

/// The folder of a training run: run.toml (resolved), provenance.json, metrics.jsonl, checkpoints/, and `lock`, which
/// rank 0 holds while the run goes on.
class RunFolder {
 public:
  /// Makes the folder and takes the lock; with `fresh` removes what an earlier run left. Throws Error(kUsage) when
  /// another process holds the lock, Error(kDisk) when the folder cannot be written. Collective.
  RunFolder(Communicator& world, std::filesystem::path folder, bool fresh);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path run_toml() const { return path_ / "run.toml"; }
  [[nodiscard]] std::filesystem::path provenance() const { return path_ / "provenance.json"; }
  [[nodiscard]] std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }
  [[nodiscard]] std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

 private:
  std::filesystem::path path_;
  std::optional<FolderLock> lock_;
};

/// Writes run.toml and provenance.json: versions, hashes of what went in, BLAS kernels, CPU, GPU and its
/// driver, layout. Rank 0 only.
void write_provenance(const RunFolder& folder, const RunConfig& config, Session& session,
                      const StoreProvenance& inputs);

/// Refuses to go on with another run than the one that wrote the checkpoint: Error(kUsage) naming every key that alters
/// the mathematics (more steps, files, layout, intervals may change), Error(kCheckpoint) for another model,
/// Error(kStoreMismatch) for other data than provenance.json names. The same on every rank.
void require_same_run(const RunFolder& folder, const TrainerState& state, const RunConfig& config,
                      const StoreProvenance& inputs);

}  // namespace reprise
