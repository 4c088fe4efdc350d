#include "launcher/collector.hpp"

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/strict_json.hpp"
#include "core/trace.hpp"
#include "launcher/collection_report.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/fault_injection.hpp"
#include "launcher/prefetcher.hpp"
#include "launcher/progress.hpp"

namespace reprise {

namespace {

/// A commit closes an HDF5 file: often enough to lose little, seldom enough to have few files.
constexpr std::int64_t kUnitsPerCommit = 8;

std::filesystem::path statistics_path(const std::filesystem::path& store, int writer) {
  return store / fmt::format("statistics-r{:04}.json", writer);
}

/// Statistics of one writer at its last two commits: whichever of them the journal has reached is the one that counts,
/// because a kill may fall between the two files.
class PartialStatistics {
 public:
  PartialStatistics(std::filesystem::path path, std::int64_t resume_unit) : path_(std::move(path)) {
    if (resume_unit == 0) return;
    const nlohmann::json json = read_json_object(path_, ErrorKind::kData);
    for (const auto& [unit, text] : json.items()) {
      if (unit != std::to_string(resume_unit)) continue;
      current_ = statistics_from_json(text.dump(), path_.string());
      last_unit_ = resume_unit;
      last_ = text;
    }
    require(last_unit_ == resume_unit, ErrorKind::kData,
            "{}: does not know the statistics of unit {}, where this collection stopped; start over with --fresh",
            path_.string(), resume_unit);
  }

  [[nodiscard]] CollectStatistics& current() { return current_; }
  /// To be called before the journal notes the unit.
  void write(std::int64_t unit) {
    nlohmann::json json = nlohmann::json::object();
    if (last_unit_ >= 0) json[std::to_string(last_unit_)] = last_;
    last_ = nlohmann::json::parse(statistics_to_json(current_));
    last_unit_ = unit;
    json[std::to_string(unit)] = last_;
    write_file_atomically(path_, json.dump());
  }

 private:
  std::filesystem::path path_;
  CollectStatistics current_;
  std::int64_t last_unit_ = -1;
  nlohmann::json last_;
};

std::int64_t all_reduce_max(Communicator& group, const Stream& stream, std::int64_t value) {
  group.all_reduce<std::int64_t>(stream, {&value, 1}, ReduceOp::kMax);
  return value;
}

std::int64_t all_reduce_min(Communicator& group, const Stream& stream, std::int64_t value) {
  return -all_reduce_max(group, stream, -value);
}

/// Which rank works on which unit follows from the layout, so a collection ends under the layout that it began with.
void require_same_layout(const std::filesystem::path& store, const ProcessGroups& groups) {
  if (groups.world->rank() == 0) {
    std::filesystem::create_directories(store);
    const std::filesystem::path path = store / "layout.json";
    const nlohmann::json now = {{"tensor", groups.tp_size()}, {"data", groups.dp_size()}};
    if (!std::filesystem::exists(path)) write_file_atomically(path, now.dump() + "\n");
    const nlohmann::json begun = read_json_object(path, ErrorKind::kData);
    require(begun == now, ErrorKind::kUsage,
            "{}: this collection began with layout {} and cannot go on with {}; use the same number of ranks, or start "
            "over with --fresh",
            store.string(), begun.dump(), now.dump());
  }
  groups.world->barrier();
}

/// The work of one rank.
template <class T>
class Collector {
 public:
  Collector(Session& session, const RunConfig& config, const LoadedModel<T>& model, const Dataset& dataset,
            const StoreProvenance& provenance)
      : session_(session),
        config_(config),
        model_(model),
        dataset_(dataset),
        options_(config.top_k_options()),
        fault_(FaultInjection::from_environment(session.world().rank())),
        writer_(config.replay.store, session.world().rank(), provenance),
        statistics_(statistics_path(config.replay.store, session.world().rank()), writer_.resume_unit()) {}

  /// True when it was asked to stop before the end.
  bool run() {
    const std::int64_t dp_size = session_.groups().dp_size(), dp_rank = session_.groups().dp_rank();
    const std::int64_t units = num_units(dataset_);
    // The writers of a tensor-parallel group may have come to different commits; what one has, it does not write again.
    const std::int64_t first =
        all_reduce_min(*session_.groups().tp, session_.host(), std::min(units, writer_.resume_unit()));
    const auto rounds_before = [&](std::int64_t unit) { return (unit - dp_rank + dp_size - 1) / dp_size; };
    const std::int64_t first_round = std::max<std::int64_t>(0, rounds_before(first)), end = rounds_before(units);
    Prefetcher<std::vector<MicroBatch>> loader(first_round, end, [&](std::int64_t round) {
      return load_unit(dataset_, round * dp_size + dp_rank, config_.train.micro_batch, config_.data.sequence_length);
    });
    Progress progress("collect", dataset_.size(), !session_.is_first());
    bool stopped = false;
    for (std::int64_t round = first_round; round < end && !stopped; ++round) {
      const std::int64_t unit = round * dp_size + dp_rank;
      if (fault_.reached("collect.unit", unit))
        fail(ErrorKind::kUsage, "REPRISE_FAULT: collect.unit has no action nan");
      for (const MicroBatch& batch : loader.next()) take(batch, unit);
      stopped = all_reduce_max(*session_.groups().tp, session_.host(), stop_requested() ? 1 : 0) > 0;
      if (stopped || round + 1 == end || (round + 1) % kUnitsPerCommit == 0) commit(unit + 1);
      progress.update(std::min(dataset_.size(), (round + 1) * dp_size * kSamplesPerUnit));
    }
    progress.finish();
    return stopped;
  }

  [[nodiscard]] const CollectStatistics& statistics() { return statistics_.current(); }

 private:
  void take(const MicroBatch& batch, std::int64_t unit) {
    const TraceRange range("collect");
    const Context context = session_.context();
    const Arena::Scope scope(context.arena);
    typename DecoderModel<T>::ActivationsPtr activations;
    const MatrixView<T> hidden = forward(context, batch, activations);
    const std::vector<std::int32_t> owners = sample_owners(batch, session_.groups().tp_size());
    const std::vector<SampleRecords> records =
        collect_top_k<T>(context, hidden, model_.model->head_weight(), model_.vocab, batch.collect_batch(owners),
                         options_, {}, session_.host().cpu());
    if (unit < writer_.resume_unit()) return;
    for (const SampleRecords& sample : records) {
      writer_.append(sample);
      statistics_.current().add(sample, options_.k_max);
    }
  }

  MatrixView<T> forward(const Context& context, const MicroBatch& batch,
                        typename DecoderModel<T>::ActivationsPtr& activations) {
    const TraceRange range("forward");
    return model_.model->forward(context, batch.token_batch(), Recompute::kNoBackward, activations);
  }

  void commit(std::int64_t unit) {
    if (unit <= writer_.resume_unit()) return;
    statistics_.write(unit);
    writer_.commit(unit);
  }

  Session& session_;
  const RunConfig& config_;
  const LoadedModel<T>& model_;
  const Dataset& dataset_;
  TopKOptions options_;
  FaultInjection fault_;
  ReplayStoreWriter writer_;
  PartialStatistics statistics_;
};

}  // namespace

template <class T>
Collected collect(Session& session, const RunConfig& config, const LoadedModel<T>& model, const Dataset& dataset,
                  const StoreProvenance& provenance) {
  require_same_layout(config.replay.store, session.groups());
  Collector<T> collector(session, config, model, dataset, provenance);
  Collected collected;
  const bool stopped = collector.run();
  collected.stopped = all_reduce_max(session.world(), session.host(), stopped ? 1 : 0) > 0;
  collected.statistics =
      reduce_statistics(session.world(), session.host(), collector.statistics(), config.replay.k_max);
  return collected;
}

void remove_partial_statistics(const std::filesystem::path& store, int writers) {
  std::error_code ignored;
  for (int writer = 0; writer < writers; ++writer) std::filesystem::remove(statistics_path(store, writer), ignored);
}

template Collected collect(Session&, const RunConfig&, const LoadedModel<float>&, const Dataset&,
                           const StoreProvenance&);
template Collected collect(Session&, const RunConfig&, const LoadedModel<BFloat16>&, const Dataset&,
                           const StoreProvenance&);

}  // namespace reprise
