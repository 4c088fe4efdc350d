#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace reprise {

/// One document. mask[i] = 1: train on predicting token i (from the tokens before it); mask[0] trains nothing.
struct Sample {
  std::uint64_t id = 0;    ///< prefix ordinal << 48 | document index
  std::uint64_t hash = 0;  ///< sample_hash of all its tokens and mask
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> mask;  ///< 0 or 1, one per token
  std::vector<float> weight;       ///< one per token, or empty = 1

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
};

/// hash_bytes over the tokens as little-endian int32, then, seeded with that, over the mask; untruncated.
[[nodiscard]] std::uint64_t sample_hash(std::span<const std::int32_t> tokens, std::span<const std::uint8_t> mask);

/// Documents by number, [0, size()), as collection, training and evaluation read them. Reading is safe from threads.
class Dataset {
 public:
  virtual ~Dataset() = default;

  [[nodiscard]] virtual std::string name() const = 0;   ///< what messages call it
  [[nodiscard]] virtual std::int64_t size() const = 0;  ///< documents
  [[nodiscard]] virtual std::int64_t num_tokens() const = 0;
  [[nodiscard]] virtual std::int64_t length(std::int64_t document) const = 0;  ///< tokens of a document
  [[nodiscard]] virtual std::uint64_t sample_id(std::int64_t document) const = 0;
  [[nodiscard]] virtual Sample read(std::int64_t document) const = 0;
  /// Targets of a document when no more than `max_tokens` of its tokens are read; reads the mask only.
  [[nodiscard]] virtual std::int64_t count_targets(std::int64_t document, std::int64_t max_tokens) const = 0;
};

}  // namespace reprise
