#include "launcher/step_shape.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "launcher/training_data.hpp"
#include "loss/candidate_gradient.hpp"

namespace reprise {

namespace {

/// Sums over the micro-batches that were looked at; `steps` counts every rank's.
struct Sums {
  std::int64_t steps = 0, micro_batches = 0, tokens = 0, targets = 0;
};

void add_plan(const Dataset& dataset, const DataLoader::Plan& plan, std::int64_t sequence_length, Sums& sums,
              StepShape& shape) {
  sums.micro_batches += plan.size();
  for (const auto& documents : plan.documents) {
    std::int64_t tokens = 0, targets = 0;
    for (const std::int64_t document : documents) {
      const std::int64_t length = std::min(dataset.length(document) - 1, sequence_length);
      tokens += length;
      targets += dataset.count_targets(document, sequence_length + 1);
      shape.longest = std::max(shape.longest, length);
    }
    sums.tokens += tokens;
    sums.targets += targets;
    shape.max_tokens = std::max(shape.max_tokens, tokens);
    shape.max_targets = std::max(shape.max_targets, targets);
  }
}

std::int64_t longest_length(const Dataset& dataset, std::int64_t sequence_length) {
  std::int64_t longest = 0;
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    longest = std::max(longest, std::min(dataset.length(d) - 1, sequence_length));
  }
  return longest;
}

/// Of an evaluation of this prefix, whose micro-batches are samples in order.
std::int64_t largest_evaluation(const RunConfig& config, const std::string& prefix, std::int64_t vocab_size) {
  const IndexedDataset dataset(prefix, vocab_size);
  std::int64_t largest = 0, tokens = 0;
  for (std::int64_t d = 0, rows = 0; d < dataset.size(); ++d) {
    tokens += std::clamp<std::int64_t>(dataset.length(d) - 1, 0, config.data.sequence_length);
    largest = std::max(largest, tokens);
    if (++rows < config.train.micro_batch) continue;
    tokens = rows = 0;
  }
  return largest;
}

}  // namespace

StepShape measure_step_shape(const RunConfig& config, std::int64_t vocab_size, std::int64_t data_size,
                             std::int64_t steps) {
  constexpr std::int64_t kMostSamples = std::int64_t{1} << 16, kSomeSteps = 8;
  const JoinedDataset domain_data(config.data.train, vocab_size), general_data(config.data.general, vocab_size);
  const std::int64_t length = config.data.sequence_length;
  const bool all = steps <= kMostSamples / config.train.global_batch;
  StepShape shape;
  const std::int64_t ranks = all ? data_size : 1, some = all ? steps : std::min(steps, kSomeSteps);
  Sums sums{.steps = ranks * some};
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const auto at = static_cast<int>(rank), of = static_cast<int>(data_size);
    const DataLoader domain = make_domain_loader(domain_data, config, at, of);
    std::optional<DataLoader> general;
    if (!config.data.general.empty()) general.emplace(make_general_loader(general_data, config, at, of));
    for (std::int64_t i = 0; i < some; ++i) {
      const std::int64_t step = all ? i : (steps - 1) * i / std::max<std::int64_t>(1, some - 1);
      const StepSamples samples = step_samples(step, config.train.global_batch, config.general_ratio());
      add_plan(domain_data, domain.plan(samples.domain), length, sums, shape);
      if (general) add_plan(general_data, general->plan(samples.general), length, sums, shape);
    }
  }
  const auto mean = [](std::int64_t sum, std::int64_t count) {
    return count > 0 ? static_cast<double>(sum) / static_cast<double>(count) : 0.0;
  };
  shape.micro_batches = mean(sums.micro_batches, sums.steps);
  shape.tokens = mean(sums.tokens, sums.micro_batches);
  shape.targets = mean(sums.targets, sums.micro_batches);
  if (!all) {
    shape.longest = std::max(longest_length(domain_data, length), longest_length(general_data, length));
    const std::int64_t worst = config.train.micro_batch * (config.data.pack ? length : shape.longest);
    const double share = mean(sums.targets, sums.tokens);
    shape.max_tokens = std::max(shape.max_tokens, worst);
    shape.max_targets = std::max(shape.max_targets, static_cast<std::int64_t>(share * static_cast<double>(worst)));
  }
  if (config.train.eval_every > 0) {
    for (const std::string& prefix : config.data.eval) {
      shape.eval_tokens = std::max(shape.eval_tokens, largest_evaluation(config, prefix, vocab_size));
    }
  }
  return shape;
}

StoreShape measure_store_shape(const ReplayStoreReader& store, const RunConfig& config) {
  constexpr std::size_t kSamples = 64;
  StoreShape shape{.positions = store.manifest().tokens(), .ids = store.manifest().ids()};
  const std::int64_t tile_tokens = config.normalization() == Normalization::kToken ? 1 : config.replay.tile_tokens;
  CandidateTilesBuilder tiles;
  const std::vector<std::uint64_t> ids = store.sample_ids();
  for (std::size_t i = 0; i < std::min(ids.size(), kSamples); ++i) {  // neighbours, which share a shard
    const SampleRecords records = store.read(ids[i]);
    const std::vector<std::uint8_t> keep(static_cast<std::size_t>(records.size()), 1);
    tiles.append(records, keep, tile_tokens);
  }
  const CandidateTiles view = tiles.view();
  double candidates = 0.0, logits = 0.0;
  std::set<std::int32_t> listed;  // of the segment that is being looked at
  std::int64_t segment_begin = 0;
  for (std::int64_t i = 0; i < view.size(); ++i) {
    const auto tile_ids = static_cast<double>(view.id_begin[i + 1] - view.id_begin[i]);
    candidates += tile_ids;
    logits += tile_ids * static_cast<double>(view.token_begin[i + 1] - view.token_begin[i]);
    const auto order = tile_tokens < 3 ? GradientOrder::kByRow : GradientOrder::kByTile;
    if (view.token_begin[i + 1] - segment_begin > segment_tokens(order)) {
      listed.clear();
      segment_begin = view.token_begin[i];
    }
    listed.insert(view.ids.data + view.id_begin[i], view.ids.data + view.id_begin[i + 1]);
    shape.segment_rows = std::max(shape.segment_rows, static_cast<double>(listed.size()));
  }
  const auto targets = static_cast<double>(tiles.token_begin.back());
  if (targets > 0.0) {
    shape.candidates_a_target = candidates / targets;
    shape.logits_a_target = logits / targets;
  }
  return shape;
}

}  // namespace reprise
