#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launcher/indexed_dataset.hpp"

namespace reprise {

/// Several indexed data sets written one behind the other: document d of prefix p has the number
/// size(0) + ... + size(p - 1) + d here. Ids tell the prefixes apart, so a replay store holds them all.
class JoinedDataset final : public Dataset {
 public:
  /// Opens every prefix with the ordinals first_ordinal, first_ordinal + 1, ...; see IndexedDataset.
  explicit JoinedDataset(const std::vector<std::string>& prefixes, std::int64_t vocab_size = 0,
                         std::uint64_t first_ordinal = 0);

  [[nodiscard]] std::string name() const override;
  [[nodiscard]] std::int64_t size() const override { return begin_.back(); }
  [[nodiscard]] std::int64_t num_tokens() const override;
  [[nodiscard]] std::int64_t length(std::int64_t document) const override;
  [[nodiscard]] std::uint64_t sample_id(std::int64_t document) const override;
  [[nodiscard]] Sample read(std::int64_t document) const override;
  [[nodiscard]] std::int64_t count_targets(std::int64_t document, std::int64_t max_tokens) const override;

  [[nodiscard]] std::size_t num_parts() const { return parts_.size(); }
  [[nodiscard]] const IndexedDataset& part(std::size_t index) const { return *parts_[index]; }
  [[nodiscard]] std::vector<std::int64_t> sizes() const;  ///< documents of each part

 private:
  struct Place {
    const IndexedDataset& part;
    std::int64_t document;
  };
  [[nodiscard]] Place find(std::int64_t document) const;

  std::vector<std::unique_ptr<IndexedDataset>> parts_;
  std::vector<std::int64_t> begin_{0};  ///< [parts + 1]
};

}  // namespace reprise
