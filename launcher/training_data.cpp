#include "launcher/training_data.hpp"

#include <filesystem>

#include "core/error.hpp"
#include "core/random.hpp"
#include "launcher/store_provenance.hpp"

namespace reprise {

namespace {

DataLoaderOptions loader_options(const RunConfig& config, int dp_rank, int dp_size) {
  DataLoaderOptions options;
  options.sequence_length = config.data.sequence_length;
  options.global_batch = config.train.global_batch;
  options.micro_batch = config.train.micro_batch;
  options.pack = config.data.pack;
  options.shuffle = config.data.shuffle;
  options.seed = static_cast<std::uint64_t>(config.data.seed);
  options.dp_rank = dp_rank;
  options.dp_size = dp_size;
  return options;
}

MissingSamples missing_rule(const RunConfig& config) {
  return config.replay.missing == "skip" ? MissingSamples::kSkip : MissingSamples::kError;
}

}  // namespace

DataLoader make_domain_loader(const JoinedDataset& dataset, const RunConfig& config, int dp_rank, int dp_size) {
  const DataLoaderOptions options = loader_options(config, dp_rank, dp_size);
  return {dataset, options, SampleOrder(dataset.sizes(), config.data.weights, options.shuffle, options.seed)};
}

DataLoader make_general_loader(const JoinedDataset& dataset, const RunConfig& config, int dp_rank, int dp_size) {
  const DataLoaderOptions options = loader_options(config, dp_size - 1 - dp_rank, dp_size);
  const std::uint64_t seed = random_bits(options.seed, 0, 2);
  return {dataset, options, SampleOrder(dataset.sizes(), {}, options.shuffle, seed)};
}

TrainingData::TrainingData(const RunConfig& config, std::int64_t vocab_size, const ProcessGroups& groups)
    : config_(config),
      vocab_size_(vocab_size),
      dataset_(config.data.train, vocab_size),
      general_(config.data.general, vocab_size, config.data.train.size()),
      statistics_(count_parts(dataset_, config.data.sequence_length)),
      general_statistics_(count_parts(general_, config.data.sequence_length)),
      loader_(make_domain_loader(dataset_, config, groups.dp_rank(), groups.dp_size())),
      provenance_(store_provenance(config, groups.world)) {
  open_store();
  if (config.data.general.empty()) return;
  general_loader_.emplace(make_general_loader(general_, config, groups.dp_rank(), groups.dp_size()));
  add_data_fingerprints(config.data.general, "general", groups.world, provenance_);
}

void TrainingData::open_store() {
  const bool full = config_.normalization() == Normalization::kFull;
  if (full && config_.replay.store.empty()) return;
  require(!full || std::filesystem::exists(config_.replay.store), ErrorKind::kData,
          "replay.store = \"{}\" does not exist; set replay.store = \"\" to train full cross-entropy on every target",
          config_.replay.store);
  store_ = std::make_unique<ReplayStoreReader>(config_.replay.store);
  require_usable_store(*store_, provenance_);
  missing_samples_ = count_missing_samples(dataset_, config_.data.sequence_length, *store_);
  require(missing_samples_ == 0 || missing_rule(config_) == MissingSamples::kSkip, ErrorKind::kStoreMismatch,
          "{} of the {} samples of {} are not in the store {}; collect again, or set replay.missing = \"skip\"",
          missing_samples_, dataset_.size(), dataset_.name(), config_.replay.store);
}

std::int64_t TrainingData::total_steps() const {
  return reprise::total_steps(config_, dataset_.size());
}

bool TrainingData::probes(std::int64_t step) const {
  return has_store() && config_.train.probe_every > 0 && (step + 1) % config_.train.probe_every == 0;
}

void TrainingData::add_domain(std::int64_t step, Range samples, PreparedStep& prepared) const {
  const Normalization normalization = config_.normalization();
  bool probed = !probes(step);
  const DataLoader::Plan plan = loader_.plan(samples);
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
}

void TrainingData::add_general(Range samples, PreparedStep& prepared) const {
  const DataLoader::Plan plan = general_loader_->plan(samples);
  for (std::int64_t i = 0; i < plan.size(); ++i) {
    PreparedMicroBatch micro;
    micro.general = true;
    micro.batch = general_loader_->load(plan, i);
    micro.targets = make_loss_targets(micro.batch, nullptr, Normalization::kFull, 1);
    prepared.micro_batches.push_back(std::move(micro));
  }
}

PreparedStep TrainingData::prepare(std::int64_t step) const {
  PreparedStep prepared;
  if (config_.normalization() != Normalization::kFull && config_.replay.negatives > 0) {
    prepared.negatives = sample_negatives(static_cast<std::uint64_t>(config_.train.seed),
                                          static_cast<std::uint64_t>(step), config_.replay.negatives, vocab_size_);
  }
  const StepSamples samples = step_samples(step, config_.train.global_batch, config_.general_ratio());
  add_domain(step, samples.domain, prepared);
  if (general_loader_) add_general(samples.general, prepared);
  return prepared;
}

}  // namespace reprise
