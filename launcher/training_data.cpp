#include "launcher/training_data.hpp"

#include <filesystem>

#include "core/error.hpp"
#include "launcher/store_provenance.hpp"

namespace reprise {

namespace {

DataLoaderOptions loader_options(const RunConfig& config, const ProcessGroups& groups) {
  DataLoaderOptions options;
  options.sequence_length = config.data.sequence_length;
  options.global_batch = config.train.global_batch;
  options.micro_batch = config.train.micro_batch;
  options.pack = config.data.pack;
  options.shuffle = config.data.shuffle;
  options.seed = static_cast<std::uint64_t>(config.data.seed);
  options.dp_rank = groups.dp_rank();
  options.dp_size = groups.dp_size();
  return options;
}

MissingSamples missing_rule(const RunConfig& config) {
  return config.replay.missing == "skip" ? MissingSamples::kSkip : MissingSamples::kError;
}

}  // namespace

TrainingData::TrainingData(const RunConfig& config, std::int64_t vocab_size, const ProcessGroups& groups)
    : config_(config),
      vocab_size_(vocab_size),
      dataset_(config.data.train, vocab_size),
      loader_(dataset_, loader_options(config, groups)),
      provenance_(store_provenance(config, groups.world)) {
  const bool full = config.normalization() == Normalization::kFull;
  if (full && config.replay.store.empty()) return;
  require(!full || std::filesystem::exists(config.replay.store), ErrorKind::kData,
          "replay.store = \"{}\" does not exist; set replay.store = \"\" to train full cross-entropy on every target",
          config.replay.store);
  store_ = std::make_unique<ReplayStoreReader>(config.replay.store);
  require_usable_store(*store_, provenance_);
  missing_samples_ = count_missing_samples(dataset_, config.data.sequence_length, *store_);
  require(missing_samples_ == 0 || missing_rule(config) == MissingSamples::kSkip, ErrorKind::kStoreMismatch,
          "{} of the {} samples of {} are not in the store {}; collect again, or set replay.missing = \"skip\"",
          missing_samples_, dataset_.size(), config.data.train, config.replay.store);
}

std::int64_t TrainingData::total_steps() const {
  return reprise::total_steps(config_, dataset_.size());
}

bool TrainingData::probes(std::int64_t step) const {
  return has_store() && config_.train.probe_every > 0 && (step + 1) % config_.train.probe_every == 0;
}

PreparedStep TrainingData::prepare(std::int64_t step) const {
  const Normalization normalization = config_.normalization();
  PreparedStep prepared;
  if (normalization != Normalization::kFull && config_.replay.negatives > 0) {
    prepared.negatives = sample_negatives(static_cast<std::uint64_t>(config_.train.seed),
                                          static_cast<std::uint64_t>(step), config_.replay.negatives, vocab_size_);
  }
  bool probed = !probes(step);
  const DataLoader::Plan plan = loader_.plan(step * config_.train.global_batch);
  for (std::int64_t i = 0; i < plan.size(); ++i) {
    PreparedMicroBatch micro;
    micro.batch = loader_.load(plan, i);
    micro.targets =
        make_loss_targets(micro.batch, store_.get(), normalization, config_.replay.tile_tokens, missing_rule(config_));
    if (!probed && micro.targets.size() > 0) {
      // Full cross-entropy has no candidates of its own: it is measured against those that tiles would have.
      const Normalization candidates = normalization == Normalization::kFull ? Normalization::kTile : normalization;
      micro.probe =
          make_loss_targets(micro.batch, store_.get(), candidates, config_.replay.tile_tokens, missing_rule(config_));
      probed = true;
    }
    prepared.micro_batches.push_back(std::move(micro));
  }
  return prepared;
}

}  // namespace reprise
