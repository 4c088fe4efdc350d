#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launcher/checkpoint.hpp"
#include "parallel/shard.hpp"

namespace reprise {

// manifest.json of a checkpoint, format "reprise-checkpoint" version 1 (docs/formats.md).

/// Elements [elements.begin, elements.end) of the row-major block rows x cols of a global tensor. ZeRO cuts blocks
/// anywhere, so a piece need not be whole rows; the block tells any other layout where each element belongs.
struct StoredPiece {
  std::int64_t parameter = 0;  ///< index in CheckpointManifest::parameters
  Range rows, cols;            ///< of the global tensor
  Range elements;              ///< of the block
};

struct StoredParameter {
  std::string name;
  std::int64_t rows = 0, cols = 0;
  bool frozen = false;  ///< has no pieces
};

/// One rank's safetensors file: for every piece the three F32 tensors of `tensor_name`, each of shape [elements].
struct StoredFile {
  std::string name;
  std::int64_t bytes = 0;
  std::string sha256;
  std::vector<StoredPiece> pieces;
};

struct CheckpointManifest {
  int tensor = 1, data = 1;  ///< layout that wrote it
  TrainerState state;
  std::vector<StoredParameter> parameters;
  std::vector<StoredFile> files;
};

/// Elements of a device's tensors that are in host memory at a time.
inline constexpr std::int64_t kPartElements = std::int64_t{4} << 20;

inline constexpr const char* kStateKinds[] = {"master", "exp_avg", "exp_avg_sq"};

/// "model.norm.weight/exp_avg/128": parameter, kind and first element of the piece.
[[nodiscard]] std::string tensor_name(const std::string& parameter, const std::string& kind, const StoredPiece& piece);

[[nodiscard]] std::string to_json(const StoredFile& file);
[[nodiscard]] StoredFile stored_file_from_json(const std::string& text, const std::string& what);

/// The text of manifest.json; it carries the SHA-256 of itself without that key.
[[nodiscard]] std::string to_json(const CheckpointManifest& manifest);
/// Throws Error(kCheckpoint) for a file that is missing, damaged, of another format or of a newer version.
[[nodiscard]] CheckpointManifest read_manifest(const std::filesystem::path& folder);

/// Parameters whose pieces do not cover every element exactly once, one line each.
[[nodiscard]] std::vector<std::string> coverage_problems(const CheckpointManifest& manifest);

/// What is wrong with a file's presence, size or hash; empty when sound.
[[nodiscard]] std::string file_problem(const std::filesystem::path& folder, const StoredFile& file);

/// "step-00000120"; -1 when a name is no such thing.
[[nodiscard]] std::string step_folder_name(std::int64_t step);
[[nodiscard]] std::int64_t step_of_folder_name(const std::string& name);

}  // namespace reprise
