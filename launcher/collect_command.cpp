#include <optional>

#include "core/error.hpp"
#include "launcher/collection_report.hpp"
#include "launcher/collector.hpp"
#include "launcher/commands.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/folder_lock.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/progress.hpp"
#include "launcher/store_provenance.hpp"

namespace reprise {

namespace {

/// Removes everything but the lock, if it is a store's folder. Collective.
void remove_store(Session& session, const std::filesystem::path& store) {
  if (session.is_first()) {
    std::vector<std::filesystem::path> entries;
    for (const auto& entry : std::filesystem::directory_iterator(store)) {
      if (entry.path().filename() != "lock") entries.push_back(entry.path());
    }
    const auto has = [&](const char* name) { return std::filesystem::exists(store / name); };
    require(entries.empty() || has("layout.json") || has("manifest.json"), ErrorKind::kUsage,
            "{}: holds other files than a replay store; --fresh does not remove them", store.string());
    for (const auto& path : entries) std::filesystem::remove_all(path);
  }
  session.world().barrier();
}

/// Prints the report of the finished store. Rank 0 only.
void print_report(const RunConfig& config, const StoreManifest& manifest, std::int64_t vocab_size) {
  const CollectStatistics statistics =
      statistics_from_json(manifest.statistics, config.replay.store + "/manifest.json");
  fmt::print("{}: {}", config.replay.store,
             collection_report(statistics, config.top_k_options(), vocab_size, manifest.bytes()));
}

void describe(const JoinedDataset& dataset, const RunConfig& config, Session& session) {
  const DataStatistics statistics = sum_of(count_parts(dataset, config.data.sequence_length));
  if (!session.is_first()) return;
  fmt::print(stderr, "{}: {} samples, {} targets; tensor {} x data {}{}\n", dataset.name(),
             format_count(statistics.samples), format_count(statistics.targets), session.groups().tp_size(),
             session.groups().dp_size(), session.on_device());
  if (statistics.truncated > 0) {
    fmt::print(stderr, "note: {} samples are longer than data.sequence_length and are truncated\n",
               format_count(statistics.truncated));
  }
  if (statistics.without_targets > 0) {
    fmt::print(stderr, "note: {} samples have no target\n", format_count(statistics.without_targets));
  }
}

template <class T>
void run_collect(Session& session, const RunConfig& config, const StoreProvenance& provenance) {
  const DecoderConfig decoder = read_decoder_config(config.model.path, config.model.vocab_size);
  require(config.data.sequence_length <= decoder.max_position_embeddings, ErrorKind::kUsage,
          "data.sequence_length = {}: the model knows {} positions (max_position_embeddings of {})",
          config.data.sequence_length, decoder.max_position_embeddings, config.model.path);
  const JoinedDataset dataset(config.data.train, decoder.vocab_size);
  describe(dataset, config, session);
  const auto model =
      load_model<T>(session, config.model.path, true, config.model.vocab_size, adapter_in(config.lora.adapter));
  const Collected collected = collect(session, config, *model, dataset, provenance);
  if (collected.stopped) {
    fail(ErrorKind::kPreempted, "stopped as asked; the same command goes on from the last commit in {}",
         config.replay.store);
  }
  if (session.is_first()) {
    const int writers = session.world().size();
    finish_store(config.replay.store, provenance, writers, statistics_to_json(collected.statistics));
    remove_partial_statistics(config.replay.store, writers);
    print_report(config, ReplayStoreReader(config.replay.store).manifest(), decoder.vocab_size);
  }
  session.world().barrier();
}

}  // namespace

void collect_command(Session& session, const RunConfig& config, bool fresh) {
  install_stop_signals();
  require(!config.replay.store.empty(), ErrorKind::kUsage, "replay.store names no folder to collect into");
  std::optional<FolderLock> lock;
  if (session.is_first()) lock.emplace(config.replay.store);
  if (fresh) remove_store(session, config.replay.store);
  const StoreProvenance provenance = store_provenance(config, &session.world());
  if (std::filesystem::exists(std::filesystem::path(config.replay.store) / "manifest.json")) {
    const ReplayStoreReader store(config.replay.store);
    store.require_provenance(provenance);
    if (session.is_first()) {
      fmt::print(stderr, "{} is complete already\n", config.replay.store);
      print_report(config, store.manifest(),
                   read_decoder_config(config.model.path, config.model.vocab_size).vocab_size);
    }
    return;
  }
  if (config.model.dtype == "bfloat16") {
    run_collect<BFloat16>(session, config, provenance);
  } else {
    run_collect<float>(session, config, provenance);
  }
}

}  // namespace reprise
