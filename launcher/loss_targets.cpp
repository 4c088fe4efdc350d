#include "launcher/loss_targets.hpp"

#include "core/error.hpp"

namespace reprise {

namespace {

std::string name_of_sample(std::uint64_t id) {
  const std::uint64_t ordinal = id >> 48, document = id & ((std::uint64_t{1} << 48) - 1);
  return ordinal == 0 ? fmt::format("document {}", document)
                      : fmt::format("document {} of data prefix {}", document, ordinal);
}

void take_target(const MicroBatch& batch, std::size_t target, LossTargets& targets) {
  targets.row.push_back(batch.row[target]);
  targets.gold.push_back(batch.gold[target]);
  targets.weight.push_back(batch.weight[target]);
  targets.position.push_back(batch.position[target]);
}

/// Takes the targets [begin, end) of one sample that have a record, and says which records those are.
std::vector<std::uint8_t> match(const MicroBatch& batch, std::size_t begin, std::size_t end,
                                const SampleRecords& records, LossTargets& targets) {
  std::vector<std::uint8_t> keep(static_cast<std::size_t>(records.size()), 0);
  std::size_t target = begin;
  for (std::size_t t = 0; t < keep.size(); ++t) {
    const std::uint32_t position = records.position[t];
    require(t == 0 || records.position[t - 1] < position, ErrorKind::kData,
            "the store's positions of {} do not rise: {} behind {}", name_of_sample(records.sample_id), position,
            t == 0 ? 0 : records.position[t - 1]);
    while (target < end && batch.position[target] < position) ++target;
    if (target == end || batch.position[target] != position) continue;
    require(static_cast<std::int64_t>(records.gold[t]) == batch.gold[target], ErrorKind::kStoreMismatch,
            "{}, position {}: the store was collected for next token {}, the data has {}; collect again",
            name_of_sample(records.sample_id), position, records.gold[t], batch.gold[target]);
    keep[t] = 1;
    take_target(batch, target, targets);
  }
  return keep;
}

}  // namespace

LossTargets make_loss_targets(const MicroBatch& batch, const ReplayStoreReader* store, Normalization normalization,
                              std::int64_t tile_tokens, MissingSamples missing) {
  REPRISE_CHECK(store != nullptr || normalization == Normalization::kFull, "only full cross-entropy needs no store");
  if (normalization == Normalization::kToken) tile_tokens = 1;
  require(tile_tokens >= 1, ErrorKind::kUsage, "replay.tile_tokens = {}: must be at least 1", tile_tokens);

  LossTargets targets;
  targets.total_rows = batch.num_tokens();
  std::uint64_t first_missing = 0;
  for (std::size_t s = 0; s < batch.sample_id.size(); ++s) {
    const auto begin = static_cast<std::size_t>(batch.sample_begin[s]);
    const auto end = static_cast<std::size_t>(batch.sample_begin[s + 1]);
    if (store == nullptr) {
      for (std::size_t target = begin; target < end; ++target) take_target(batch, target, targets);
    } else if (!store->contains(batch.sample_id[s])) {
      if (targets.missing_samples++ == 0) first_missing = batch.sample_id[s];
    } else {
      const SampleRecords records = store->read(batch.sample_id[s]);
      require(records.sample_hash == batch.sample_hash[s], ErrorKind::kStoreMismatch,
              "{}: its tokens or mask are not those that the store was collected from; collect again",
              name_of_sample(batch.sample_id[s]));
      const std::vector<std::uint8_t> keep = match(batch, begin, end, records, targets);
      if (normalization != Normalization::kFull) targets.tiles.append(records, keep, tile_tokens);
    }
    targets.sample_begin.push_back(targets.size());
  }
  require(targets.missing_samples == 0 || missing == MissingSamples::kSkip, ErrorKind::kStoreMismatch,
          "{} of the {} samples of a micro-batch are not in the store, {} the first; collect again, or set "
          "replay.missing = \"skip\"",
          targets.missing_samples, batch.num_samples(), name_of_sample(first_missing));
  return targets;
}

std::int64_t count_missing_samples(const Dataset& dataset, std::int64_t sequence_length,
                                   const ReplayStoreReader& store) {
  std::int64_t missing = 0;
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const bool has_targets = dataset.count_targets(d, sequence_length + 1) > 0;
    if (has_targets && !store.contains(dataset.sample_id(d))) ++missing;
  }
  return missing;
}

}  // namespace reprise
