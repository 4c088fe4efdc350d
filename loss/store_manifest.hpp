#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "loss/replay_store.hpp"

namespace reprise {

inline constexpr int kStoreVersionMajor = 1, kStoreVersionMinor = 0;

[[nodiscard]] inline std::filesystem::path manifest_path(const std::filesystem::path& folder) {
  return folder / "manifest.json";
}

[[nodiscard]] inline bool file_exists(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

/// Throws Error(kData) naming the field for anything but a manifest of our major version.
[[nodiscard]] StoreManifest read_store_manifest(const std::filesystem::path& folder);
void write_store_manifest(const std::filesystem::path& folder, const StoreManifest& manifest);

/// Throws Error(kStoreMismatch) that names the first keys of `expected` whose values differ, with both.
void require_same_provenance(const std::filesystem::path& folder, const StoreProvenance& found,
                             const StoreProvenance& expected);
/// The key vocab_size as a number; 2^31 where it is absent, so that ids fit an int32.
[[nodiscard]] std::int64_t vocab_size_of(const std::filesystem::path& folder, const StoreProvenance& provenance);

/// One writer's journal, `journal-r0003.jsonl`: a first line with version, writer, number of writers and provenance,
/// then a line per shard and a line per committed unit. Shards count once a unit line follows them.
class StoreJournal {
 public:
  /// Reads a journal; a last line that was torn by a kill is passed over. Throws Error(kData) for other damage.
  static StoreJournal read(const std::filesystem::path& folder, int writer);
  /// Begins a journal, atomically.
  static StoreJournal begin(const std::filesystem::path& folder, int writer, int num_writers,
                            const StoreProvenance& provenance);
  [[nodiscard]] static std::filesystem::path path(const std::filesystem::path& folder, int writer);

  /// Rewrites the file without the lines behind the last unit.
  void drop_uncommitted();
  void add_shard(const StoreShard& shard);
  void add_unit(std::int64_t unit);

  [[nodiscard]] const StoreProvenance& provenance() const { return provenance_; }
  [[nodiscard]] int num_writers() const { return num_writers_; }
  [[nodiscard]] std::int64_t unit() const { return unit_; }
  [[nodiscard]] const std::vector<StoreShard>& shards() const { return committed_; }
  [[nodiscard]] bool has_uncommitted() const { return !pending_.empty() || is_torn_; }

 private:
  void take_line(const std::string& line, std::int64_t number);

  std::filesystem::path path_;
  StoreProvenance provenance_;
  int num_writers_ = 0;
  std::int64_t unit_ = 0;
  std::vector<StoreShard> committed_, pending_;
  std::string text_;  // up to the last unit line
  bool is_torn_ = false;
};

}  // namespace reprise
