#include "launcher/data_loader.hpp"

#include <algorithm>

#include "core/random.hpp"

namespace reprise {

DataStatistics count_data(const IndexedDataset& dataset, std::int64_t sequence_length,
                          std::vector<std::uint8_t>* has_targets) {
  DataStatistics statistics;
  statistics.samples = dataset.size();
  if (has_targets != nullptr) has_targets->assign(static_cast<std::size_t>(dataset.size()), 0);
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const std::int64_t length = dataset.length(d);
    const std::int64_t targets = dataset.count_targets(d, sequence_length + 1);
    statistics.longest = std::max(statistics.longest, length);
    statistics.tokens += std::clamp<std::int64_t>(length - 1, 0, sequence_length);
    statistics.targets += targets;
    statistics.truncated += length > sequence_length + 1 ? 1 : 0;
    statistics.without_targets += targets == 0 ? 1 : 0;
    if (has_targets != nullptr) (*has_targets)[static_cast<std::size_t>(d)] = targets > 0 ? 1 : 0;
  }
  require(statistics.targets > 0, ErrorKind::kData,
          "{}: none of the {} documents has a token to train on (mask and sequence_length = {} leave nothing)",
          dataset.prefix().string(), dataset.size(), sequence_length);
  return statistics;
}

DataLoader::DataLoader(const IndexedDataset& dataset, const DataLoaderOptions& options)
    : dataset_(dataset), options_(options) {
  const auto positive = [](std::int64_t value, const char* key) {
    require(value >= 1, ErrorKind::kUsage, "{} = {}: must be at least 1", key, value);
  };
  positive(options.sequence_length, "data.sequence_length");
  positive(options.global_batch, "train.global_batch");
  positive(options.micro_batch, "train.micro_batch");
  REPRISE_CHECK(0 <= options.dp_rank && options.dp_rank < options.dp_size, "dp rank {} of {}", options.dp_rank,
                options.dp_size);
  require(options.global_batch % options.dp_size == 0, ErrorKind::kUsage,
          "train.global_batch = {}: must be a multiple of the {} data-parallel ranks, e.g. {}", options.global_batch,
          options.dp_size, (options.global_batch / options.dp_size + 1) * options.dp_size);
  statistics_ = count_data(dataset, options.sequence_length, &has_targets_);
}

std::int64_t DataLoader::document(std::int64_t sample) const {
  const std::int64_t epoch = sample / dataset_.size(), index = sample % dataset_.size();
  if (!options_.shuffle) return index;
  const std::uint64_t key = random_bits(options_.seed, static_cast<std::uint64_t>(epoch));
  return static_cast<std::int64_t>(
      random_permutation(key, static_cast<std::uint64_t>(dataset_.size()), static_cast<std::uint64_t>(index)));
}

std::vector<std::vector<std::int64_t>> DataLoader::rows_of(std::int64_t first, Range share) const {
  std::vector<std::vector<std::int64_t>> rows;
  std::vector<std::int64_t> room;  // tokens that each row can still take
  for (std::int64_t sample = first + share.begin; sample < first + share.end; ++sample) {
    const std::int64_t candidate = document(sample);
    if (has_targets_[static_cast<std::size_t>(candidate)] == 0) continue;
    const std::int64_t tokens = std::min(dataset_.length(candidate) - 1, options_.sequence_length);
    std::size_t row = rows.size();
    if (options_.pack) {
      row = static_cast<std::size_t>(
          std::find_if(room.begin(), room.end(), [&](std::int64_t left) { return left >= tokens; }) - room.begin());
    }
    if (row == rows.size()) {
      rows.emplace_back();
      room.push_back(options_.sequence_length);
    }
    rows[row].push_back(candidate);
    room[row] -= tokens;
  }
  return rows;
}

DataLoader::Plan DataLoader::plan(std::int64_t first) const {
  Plan plan;
  std::int64_t micro_batches = 0;
  for (int rank = 0; rank < options_.dp_size; ++rank) {
    const auto rows = rows_of(first, even_shard(options_.global_batch, options_.dp_size, rank));
    const auto count = static_cast<std::int64_t>(rows.size());
    micro_batches = std::max(micro_batches, (count + options_.micro_batch - 1) / options_.micro_batch);
    if (rank != options_.dp_rank) continue;
    for (std::int64_t r = 0; r < count; ++r) {
      if (r % options_.micro_batch == 0) plan.documents.emplace_back();
      const auto& row = rows[static_cast<std::size_t>(r)];
      plan.documents.back().insert(plan.documents.back().end(), row.begin(), row.end());
    }
  }
  plan.documents.resize(static_cast<std::size_t>(micro_batches));
  return plan;
}

MicroBatch DataLoader::load(const Plan& plan, std::int64_t index) const {
  MicroBatch batch;
  for (const std::int64_t document : plan.documents[static_cast<std::size_t>(index)]) {
    const bool appended = batch.append(dataset_.read(document), options_.sequence_length);
    REPRISE_CHECK(appended, "document {} has no target", document);
  }
  return batch;
}

std::int64_t num_units(const IndexedDataset& dataset) {
  return (dataset.size() + kSamplesPerUnit - 1) / kSamplesPerUnit;
}

std::vector<MicroBatch> load_unit(const IndexedDataset& dataset, std::int64_t unit, std::int64_t micro_batch,
                                  std::int64_t sequence_length) {
  REPRISE_CHECK(0 <= unit && unit < num_units(dataset) && micro_batch >= 1, "unit {} of {}, micro-batches of {}", unit,
                num_units(dataset), micro_batch);
  std::vector<MicroBatch> batches;
  const std::int64_t end = std::min((unit + 1) * kSamplesPerUnit, dataset.size());
  for (std::int64_t document = unit * kSamplesPerUnit; document < end; ++document) {
    if (dataset.count_targets(document, sequence_length + 1) == 0) continue;
    if (batches.empty() || batches.back().num_samples() == micro_batch) batches.emplace_back();
    batches.back().append(dataset.read(document), sequence_length);
  }
  return batches;
}

}  // namespace reprise
