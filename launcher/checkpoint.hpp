#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "core/stream.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

// A checkpoint is a folder `step-00000120` below the run's `checkpoints/`: one safetensors file per rank with the
// master weights and moments that it owns, and manifest.json (format version, world layout, every parameter's global
// shape, every piece's global block and element range, SHA-256 and size of every file, TrainerState). It is built in
// `step-00000120.tmp`, every file fsynced, renamed, the folder fsynced, and `LATEST` (a file that holds the folder's
// name) replaced last. Everything wrong with one throws Error(kCheckpoint) naming file and tensor; a write that fails
// throws Error(kDisk) on every rank, removes the .tmp and leaves older checkpoints as they were.

/// What training needs beside tensors; random numbers are counter-based, so seeds and counters are all their state.
struct TrainerState {
  std::int64_t step = 0;         ///< steps done = 0-based index of the next
  std::int64_t next_sample = 0;  ///< data cursor: samples of the run that were drawn
  std::int64_t steps_taken = 0;  ///< steps that were not skipped
  std::int64_t skips = 0;        ///< skipped steps so far
  std::int64_t skips_in_row = 0;
  std::int64_t metrics_bytes = 0;  ///< length of metrics.jsonl: a resumed run cuts what lies behind
  double best_eval = 0.0;          ///< lowest mean loss on the first evaluation set; meaningful when best_step >= 0
  std::int64_t best_step = -1;
  std::string run_toml;           ///< the resolved run file
  std::string model_fingerprint;  ///< of the model that training began from
};

/// Writes a checkpoint and then drops others: this one stays, the newest before it up to `keep` in all, and the one of
/// `best_step`. Those of later steps go: they belong to a course that the run has left. Collective over the world;
/// every rank returns or throws alike. `owned`: Optimizer::owned_pieces(), on the stream's device, written in parts
/// through a little host memory. Returns the folder.
std::filesystem::path save_checkpoint(const Stream& stream, const ProcessGroups& groups,
                                      const std::filesystem::path& root, const TrainerState& state,
                                      const std::vector<ParameterSpec>& specs, const std::vector<OwnedPiece>& owned,
                                      std::int64_t keep);

/// Fills `held` (Optimizer::held_pieces(), on the stream's device) from a checkpoint of any tensor x data layout and
/// ZeRO stage; each rank reads only what it holds, bit for bit, and hashes its share of the files. Names, shapes and
/// frozen parameters must match. Empty `exp_avg` and `exp_avg_sq` are not read (an export wants the weights alone).
/// Collective (errors are agreed).
[[nodiscard]] TrainerState load_checkpoint(const Stream& stream, const ProcessGroups& groups,
                                           const std::filesystem::path& folder, const std::vector<ParameterSpec>& specs,
                                           const std::vector<OwnedPiece>& held);

/// TrainerState alone.
[[nodiscard]] TrainerState read_trainer_state(const std::filesystem::path& folder);

struct CheckpointInfo {
  std::filesystem::path folder;
  std::int64_t step = 0;
  std::int64_t bytes = 0;
  int tensor = 0, data = 0;  ///< layout that wrote it
  bool is_latest = false, is_best = false;
};
/// Finished checkpoints of a `checkpoints/` folder by step; without the folder none. Does not verify.
[[nodiscard]] std::vector<CheckpointInfo> list_checkpoints(const std::filesystem::path& root);
/// Every problem of a checkpoint, one line each (empty = sound): manifest, sizes, hashes, coverage of every parameter.
[[nodiscard]] std::vector<std::string> verify_checkpoint(const std::filesystem::path& folder);

struct FoundCheckpoint {
  std::filesystem::path folder;
  std::vector<std::string> passed_over;  ///< newer ones that do not verify, with their first problem
};
/// The newest checkpoint that verifies; none without one. Rank 0 looks, all learn; collective.
[[nodiscard]] std::optional<FoundCheckpoint> find_checkpoint(Communicator& world, const std::filesystem::path& root);

}  // namespace reprise
