#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "loss/candidate_tiles.hpp"

namespace reprise {

/// Samples of one shard in memory, sets as bytes (LEB128 of the first id, then of the differences): about a third of
/// their size as integers. Random access by index.
class ReplayShard {
 public:
  [[nodiscard]] std::int64_t samples() const { return static_cast<std::int64_t>(sample_id_.size()); }
  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(position_.size()); }
  [[nodiscard]] std::int64_t ids() const { return ids_; }
  [[nodiscard]] const std::vector<std::uint64_t>& sample_ids() const { return sample_id_; }
  [[nodiscard]] SampleRecords sample(std::int64_t index) const;
  [[nodiscard]] std::int64_t memory_bytes() const;

  /// Throws Error(kInternal) for records that no store may hold: positions or ids that do not rise, an empty set, a
  /// gold outside its set, a probability outside [0, 1], some samples with log-probabilities and some without.
  void append(const SampleRecords& records);
  void clear();

  /// The bytes of an HDF5 file of these samples.
  [[nodiscard]] std::string to_hdf5() const;
  /// Reads and checks a file: shapes, order of positions and ids, ids < vocab_size, gold inside its set,
  /// probabilities. Throws Error(kData) that names file, dataset and sample. Memory stays within a fixed multiple of
  /// the file's size whatever it claims.
  [[nodiscard]] static ReplayShard from_hdf5(const std::filesystem::path& path, std::int64_t vocab_size);

  friend bool operator==(const ReplayShard&, const ReplayShard&) = default;

 private:
  void add(const SampleRecords& records);

  std::vector<std::uint64_t> sample_id_, sample_hash_;
  std::vector<std::uint64_t> token_end_, byte_end_, id_end_;  // [samples]
  std::vector<std::uint32_t> position_, gold_, set_size_;     // [tokens]
  std::vector<std::uint8_t> flags_;
  std::vector<float> mass_, confidence_;
  std::vector<std::uint8_t> set_bytes_;
  std::vector<std::uint16_t> log_prob_;  // [ids] half precision, or empty
  std::int64_t ids_ = 0;
};

/// The sample ids of a shard file alone, checked like from_hdf5.
[[nodiscard]] std::vector<std::uint64_t> read_sample_ids(const std::filesystem::path& path);

}  // namespace reprise
