#pragma once

#include <cstdint>
#include <vector>

#include "launcher/dataset.hpp"
#include "layers/decoder_model.hpp"
#include "loss/top_k.hpp"

namespace reprise {

/// Packed samples and their targets, owned, in host memory. A sample of L tokens (cut to sequence_length + 1) gives the
/// input tokens [0, L - 1); the input token at `position` p predicts gold = token p + 1, and is a target when
/// mask[p + 1] is set.
struct MicroBatch {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> document_offsets{0};  ///< [samples + 1]
  // Targets, in order of rows.
  std::vector<std::int32_t> row;
  std::vector<std::int32_t> gold;
  std::vector<float> weight;
  std::vector<std::uint32_t> position;
  std::vector<std::int64_t> sample_begin{0};  ///< [samples + 1] offsets into the targets
  // Samples.
  std::vector<std::uint64_t> sample_id;
  std::vector<std::uint64_t> sample_hash;
  std::int64_t truncated = 0;  ///< samples that were cut

  [[nodiscard]] std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  [[nodiscard]] std::int64_t num_targets() const { return static_cast<std::int64_t>(row.size()); }
  [[nodiscard]] std::int64_t num_samples() const { return static_cast<std::int64_t>(sample_id.size()); }
  [[nodiscard]] bool empty() const { return tokens.empty(); }

  /// Adds a sample; one that gives no input token or no target is left out, and false returned.
  bool append(const Sample& sample, std::int64_t sequence_length);
  /// Views into this object.
  [[nodiscard]] TokenBatch token_batch() const { return {tokens, document_offsets}; }
  /// All targets, with the tp rank that gets each sample's records (see sample_owners). Views into both.
  [[nodiscard]] CollectBatch collect_batch(const std::vector<std::int32_t>& owners) const {
    return {row, gold, position, sample_begin, sample_id, sample_hash, owners};
  }
};

/// sample id modulo tp_size.
[[nodiscard]] std::vector<std::int32_t> sample_owners(const MicroBatch& batch, int tp_size);

}  // namespace reprise
