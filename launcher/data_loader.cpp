#include "launcher/data_loader.hpp"

#include <algorithm>

namespace reprise {

DataStatistics count_data(const Dataset& dataset, std::int64_t sequence_length) {
  DataStatistics statistics;
  statistics.samples = dataset.size();
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const std::int64_t length = dataset.length(d);
    const std::int64_t targets = dataset.count_targets(d, sequence_length + 1);
    statistics.longest = std::max(statistics.longest, length);
    statistics.tokens += std::clamp<std::int64_t>(length - 1, 0, sequence_length);
    statistics.targets += targets;
    statistics.truncated += length > sequence_length + 1 ? 1 : 0;
    statistics.without_targets += targets == 0 ? 1 : 0;
  }
  require(statistics.targets > 0, ErrorKind::kData,
          "{}: none of the {} documents has a token to train on (mask and sequence_length = {} leave nothing)",
          dataset.name(), dataset.size(), sequence_length);
  return statistics;
}

std::vector<DataStatistics> count_parts(const JoinedDataset& dataset, std::int64_t sequence_length) {
  std::vector<DataStatistics> parts;
  for (std::size_t p = 0; p < dataset.num_parts(); ++p) {
    parts.push_back(count_data(dataset.part(p), sequence_length));
  }
  return parts;
}

DataStatistics sum_of(const std::vector<DataStatistics>& parts) {
  DataStatistics sum;
  for (const DataStatistics& part : parts) {
    sum.samples += part.samples;
    sum.tokens += part.tokens;
    sum.targets += part.targets;
    sum.truncated += part.truncated;
    sum.without_targets += part.without_targets;
    sum.longest = std::max(sum.longest, part.longest);
  }
  return sum;
}

DataLoader::DataLoader(const Dataset& dataset, const DataLoaderOptions& options, SampleOrder order)
    : dataset_(dataset), options_(options), order_(std::move(order)) {
  const auto positive = [](std::int64_t value, const char* key) {
    require(value >= 1, ErrorKind::kUsage, "{} = {}: must be at least 1", key, value);
  };
  positive(options.sequence_length, "data.sequence_length");
  positive(options.global_batch, "train.global_batch");
  positive(options.micro_batch, "train.micro_batch");
  REPRISE_CHECK(0 <= options.dp_rank && options.dp_rank < options.dp_size, "dp rank {} of {}", options.dp_rank,
                options.dp_size);
  REPRISE_CHECK(order_.size() == dataset.size(), "an order of {} for {} documents", order_.size(), dataset.size());
  require(options.global_batch % options.dp_size == 0, ErrorKind::kUsage,
          "train.global_batch = {}: must be a multiple of the {} data-parallel ranks, e.g. {}", options.global_batch,
          options.dp_size, (options.global_batch / options.dp_size + 1) * options.dp_size);
}

DataLoader::DataLoader(const Dataset& dataset, const DataLoaderOptions& options)
    : DataLoader(dataset, options, SampleOrder({dataset.size()}, {}, options.shuffle, options.seed)) {}

std::vector<std::vector<std::int64_t>> DataLoader::rows_of(Range samples) const {
  std::vector<std::vector<std::int64_t>> rows;
  std::vector<std::int64_t> room;  // tokens that each row can still take
  for (std::int64_t sample = samples.begin; sample < samples.end; ++sample) {
    const std::int64_t document = order_.document(sample);
    if (dataset_.count_targets(document, options_.sequence_length + 1) == 0) continue;
    const std::int64_t tokens = std::min(dataset_.length(document) - 1, options_.sequence_length);
    std::size_t row = rows.size();
    if (options_.pack) {
      row = static_cast<std::size_t>(
          std::find_if(room.begin(), room.end(), [&](std::int64_t left) { return left >= tokens; }) - room.begin());
    }
    if (row == rows.size()) {
      rows.emplace_back();
      room.push_back(options_.sequence_length);
    }
    rows[row].push_back(document);
    room[row] -= tokens;
  }
  return rows;
}

DataLoader::Plan DataLoader::plan(Range samples) const {
  Plan plan;
  std::int64_t micro_batches = 0;
  for (int rank = 0; rank < options_.dp_size; ++rank) {
    const Range share = even_shard(samples.size(), options_.dp_size, rank);
    const auto rows = rows_of({samples.begin + share.begin, samples.begin + share.end});
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

std::int64_t num_units(const Dataset& dataset) {
  return (dataset.size() + kSamplesPerUnit - 1) / kSamplesPerUnit;
}

std::vector<MicroBatch> load_unit(const Dataset& dataset, std::int64_t unit, std::int64_t micro_batch,
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
