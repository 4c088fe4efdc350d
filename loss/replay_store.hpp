#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "loss/candidate_tiles.hpp"

namespace reprise {

/// What a store was made from; two provenances that differ in a key name that key. Values are strings (numbers by
/// std::to_chars, hashes in hex). Keys: model, tokenizer, data, template (SHA-256), vocab_size, tau, k_max, k_min,
/// positions, budget, seed, sequence_length, log_probs, dtype.
using StoreProvenance = std::map<std::string, std::string>;

struct StoreShard {
  std::string file;  ///< "shard-r0003-000017.h5", inside the folder
  std::int64_t samples = 0, tokens = 0, ids = 0, bytes = 0;
  std::uint64_t first_sample = 0, last_sample = 0;
  std::string sha256;
};

struct StoreManifest {
  int version_major = 1, version_minor = 0;
  StoreProvenance provenance;
  std::vector<StoreShard> shards;
  std::string statistics;  ///< JSON text of the collection's statistics
  [[nodiscard]] std::int64_t samples() const;
  [[nodiscard]] std::int64_t tokens() const;
  [[nodiscard]] std::int64_t ids() const;
  [[nodiscard]] std::int64_t bytes() const;
};

/// Appends whole samples to immutable HDF5 shards of one writer. A shard is written as `.part`, fsynced, renamed, the
/// folder fsynced, read back and compared, and then named by one line of the writer's journal, so a killed collection
/// loses at most what was appended since the last commit. Disk failures throw Error(kDisk).
class ReplayStoreWriter {
 public:
  /// Opens `folder` (made when missing) for `writer`, reads its journal, and drops what was not committed: `.part`
  /// files, shards and journal lines behind the last unit.
  /// Throws Error(kStoreMismatch) naming the key when the folder was begun with another provenance, or by another
  /// number of writers (0 = not checked): their units would not be the same.
  ReplayStoreWriter(std::filesystem::path folder, int writer, StoreProvenance provenance, int num_writers = 0);
  ~ReplayStoreWriter();
  ReplayStoreWriter(const ReplayStoreWriter&) = delete;
  ReplayStoreWriter& operator=(const ReplayStoreWriter&) = delete;

  /// A sample that this writer committed before it was opened is left out: ranks that resume together redo the units
  /// that one of them lost.
  void append(const SampleRecords& records);
  /// Finishes the open shard and notes in the journal that work units below `unit` are complete for this writer.
  void commit(std::int64_t unit);
  /// First work unit that is not complete, from the journal; 0 for a new store.
  [[nodiscard]] std::int64_t resume_unit() const;
  /// The committed shards, those of earlier processes first.
  [[nodiscard]] const std::vector<StoreShard>& shards() const;
  /// Ids appended since the last commit: a commit for every few million makes shards of a good size.
  [[nodiscard]] std::int64_t open_ids() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes manifest.json from all journals of the folder, last and atomically. One rank, after all writers are done.
/// Throws Error(kData) when a journal is missing, Error(kStoreMismatch) for another provenance or more writers.
void finish_store(const std::filesystem::path& folder, const StoreProvenance& provenance, int num_writers,
                  const std::string& statistics_json);

/// The samples of one shard in order: for the statistics of a resumed collection, and for whole-store readers. Throws
/// like ReplayStoreReader::read.
void visit_shard(const std::filesystem::path& folder, const StoreShard& shard, std::int64_t vocab_size,
                 const std::function<void(const SampleRecords&)>& visit);

/// Random access by sample id. Reads whole shards once and keeps them packed in memory. Not thread-safe.
class ReplayStoreReader {
 public:
  /// Throws Error(kData) without a manifest ("the store is incomplete: run collect again"), for a missing shard or a
  /// newer major version.
  explicit ReplayStoreReader(std::filesystem::path folder);
  ~ReplayStoreReader();
  ReplayStoreReader(const ReplayStoreReader&) = delete;
  ReplayStoreReader& operator=(const ReplayStoreReader&) = delete;

  [[nodiscard]] const StoreManifest& manifest() const;
  /// Throws Error(kStoreMismatch) that names the first keys that differ, with both values.
  void require_provenance(const StoreProvenance& expected) const;
  [[nodiscard]] bool contains(std::uint64_t sample_id) const;
  /// Throws Error(kData) naming file, dataset and sample for damaged data, kStoreMismatch for an unknown sample.
  [[nodiscard]] SampleRecords read(std::uint64_t sample_id) const;
  /// Ascending.
  [[nodiscard]] std::vector<std::uint64_t> sample_ids() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Every problem of a store, one line each (empty = sound): checksums, counts, order of ids, golds inside, journals.
[[nodiscard]] std::vector<std::string> verify_store(const std::filesystem::path& folder);

}  // namespace reprise
