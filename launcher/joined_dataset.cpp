#include "launcher/joined_dataset.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace reprise {

JoinedDataset::JoinedDataset(const std::vector<std::string>& prefixes, std::int64_t vocab_size,
                             std::uint64_t first_ordinal) {
  for (const std::string& prefix : prefixes) {
    parts_.push_back(std::make_unique<IndexedDataset>(prefix, vocab_size, first_ordinal++));
    begin_.push_back(begin_.back() + parts_.back()->size());
  }
}

JoinedDataset::Place JoinedDataset::find(std::int64_t document) const {
  REPRISE_CHECK(0 <= document && document < size(), "document {} of {}", document, size());
  // The last part that begins at or before the document: empty parts are passed over.
  const auto behind = std::upper_bound(begin_.begin(), begin_.end(), document);
  const auto index = static_cast<std::size_t>(behind - begin_.begin()) - 1;
  return {*parts_[index], document - begin_[index]};
}

std::string JoinedDataset::name() const {
  std::string text;
  for (const auto& part : parts_) text += (text.empty() ? "" : ", ") + part->name();
  return text;
}

std::int64_t JoinedDataset::num_tokens() const {
  std::int64_t tokens = 0;
  for (const auto& part : parts_) tokens += part->num_tokens();
  return tokens;
}

std::int64_t JoinedDataset::length(std::int64_t document) const {
  const Place place = find(document);
  return place.part.length(place.document);
}

std::uint64_t JoinedDataset::sample_id(std::int64_t document) const {
  const Place place = find(document);
  return place.part.sample_id(place.document);
}

Sample JoinedDataset::read(std::int64_t document) const {
  const Place place = find(document);
  return place.part.read(place.document);
}

std::int64_t JoinedDataset::count_targets(std::int64_t document, std::int64_t max_tokens) const {
  const Place place = find(document);
  return place.part.count_targets(place.document, max_tokens);
}

std::vector<std::int64_t> JoinedDataset::sizes() const {
  std::vector<std::int64_t> sizes;
  for (const auto& part : parts_) sizes.push_back(part->size());
  return sizes;
}

}  // namespace reprise
