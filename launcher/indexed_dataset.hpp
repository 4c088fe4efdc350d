#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/error.hpp"
#include "launcher/dataset.hpp"
#include "launcher/mapped_file.hpp"
#include "parallel/communicator.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// Megatron's indexed dataset, memory-mapped: `<prefix>.idx` and `<prefix>.bin` of any integer type,
/// `<prefix>.mask.bin` (uint8 per token of the .bin; absent = all but the first token of each document), optional
/// `<prefix>.weight.bin` (float32 per token). A document is its sequences one behind the other. The sequences tile the
/// .bin in order. Everything wrong with the files throws Error(kData) naming file and byte offset. Reading is safe from
/// threads.
class IndexedDataset final : public Dataset {
 public:
  /// `ordinal` tells the prefixes of a run apart in sample ids. Ids must lie in [0, vocab_size); 0 = not checked here.
  explicit IndexedDataset(std::filesystem::path prefix, std::int64_t vocab_size = 0, std::uint64_t ordinal = 0);

  [[nodiscard]] const std::filesystem::path& prefix() const { return prefix_; }
  [[nodiscard]] bool has_mask() const { return mask_ != nullptr; }
  [[nodiscard]] bool has_weight() const { return weight_ != nullptr; }

  [[nodiscard]] std::string name() const override { return prefix_.string(); }
  [[nodiscard]] std::int64_t size() const override { return num_documents_; }
  [[nodiscard]] std::int64_t num_tokens() const override { return num_tokens_; }
  [[nodiscard]] std::int64_t length(std::int64_t document) const override;
  [[nodiscard]] std::uint64_t sample_id(std::int64_t document) const override {
    return (ordinal_ << 48) | static_cast<std::uint64_t>(document);
  }
  [[nodiscard]] Sample read(std::int64_t document) const override;
  [[nodiscard]] std::int64_t count_targets(std::int64_t document, std::int64_t max_tokens) const override;

 private:
  void read_index();
  void check_sequences() const;
  void check_documents() const;
  void open_sidecars();
  /// First token, in the .bin, of a sequence; num_tokens_ for the sequence behind the last.
  [[nodiscard]] std::int64_t token_begin(std::int64_t sequence) const;
  /// Tokens, in the .bin, of a document.
  [[nodiscard]] Range token_range(std::int64_t document) const;
  [[nodiscard]] std::int64_t document_index(std::int64_t index) const;

  std::filesystem::path prefix_;
  std::int64_t vocab_size_;
  std::uint64_t ordinal_;
  std::unique_ptr<MappedFile> index_, tokens_, mask_, weight_;
  int dtype_code_ = 0;
  std::int64_t element_bytes_ = 0;
  std::int64_t num_sequences_ = 0, num_documents_ = 0, num_tokens_ = 0;
  std::int64_t lengths_begin_ = 0, pointers_begin_ = 0, documents_begin_ = 0;  ///< bytes in the .idx
};

/// SHA-256 (hex) over the tree hashes of .idx, .bin and, where present, .mask.bin and .weight.bin; see
/// cached_sha256_tree for `world` and `cache`.
[[nodiscard]] std::string dataset_fingerprint(const std::filesystem::path& prefix, Communicator* world = nullptr,
                                              const std::filesystem::path& cache = {});

}  // namespace reprise
