#include <algorithm>
#include <optional>
#include <unordered_set>

#include "core/file_io.hpp"
#include "core/sha256.hpp"
#include "loss/replay_shard.hpp"
#include "loss/replay_store.hpp"
#include "loss/store_manifest.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

/// A shard is closed in the middle of a unit when it holds this many ids, to bound memory.
constexpr std::int64_t kMaxShardIds = std::int64_t{1} << 25;

std::string shard_prefix(int writer) {
  return fmt::format("shard-r{:04}-", writer);
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  require(!error, ErrorKind::kDisk, "{}: cannot make the folder: {}", folder.string(), error.message());
}

StoreJournal open_journal(const fs::path& folder, int writer, const StoreProvenance& provenance, int num_writers) {
  const auto check = [&](const StoreJournal& journal) {
    require_same_provenance(folder, journal.provenance(), provenance);
    require(num_writers == 0 || journal.num_writers() == 0 || journal.num_writers() == num_writers,
            ErrorKind::kStoreMismatch,
            "{}: num_writers: the store was begun by {} ranks, this run has {}; go on with as many, or begin anew in "
            "another folder",
            folder.string(), journal.num_writers(), num_writers);
  };
  if (file_exists(manifest_path(folder))) {
    require_same_provenance(folder, read_store_manifest(folder).provenance, provenance);
  }
  if (writer != 0 && file_exists(StoreJournal::path(folder, 0))) check(StoreJournal::read(folder, 0));
  if (!file_exists(StoreJournal::path(folder, writer))) {
    return StoreJournal::begin(folder, writer, num_writers, provenance);
  }
  StoreJournal journal = StoreJournal::read(folder, writer);
  check(journal);
  journal.drop_uncommitted();
  return journal;
}

/// Removes the files of a writer that its journal does not name.
void remove_strays(const fs::path& folder, int writer, const std::vector<StoreShard>& shards) {
  std::error_code error;
  std::vector<fs::path> strays;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(shard_prefix(writer))) continue;
    const bool named = std::any_of(shards.begin(), shards.end(), [&](const auto& shard) { return shard.file == name; });
    if (!named) strays.push_back(entry.path());
  }
  for (const fs::path& stray : strays) {
    if (!error) fs::remove(stray, error);
  }
  require(!error, ErrorKind::kDisk, "{}: cannot remove what a killed collection left: {}", folder.string(),
          error.message());
}

}  // namespace

struct ReplayStoreWriter::Impl {
  Impl(fs::path store_folder, int writer_index, const StoreProvenance& store_provenance, int num_writers)
      : folder((make_folder(store_folder), std::move(store_folder))),
        writer(writer_index),
        vocab_size(vocab_size_of(folder, store_provenance)),
        journal(open_journal(folder, writer, store_provenance, num_writers)) {
    remove_strays(folder, writer, journal.shards());
    for (const StoreShard& named : journal.shards()) {
      for (const std::uint64_t id : read_sample_ids(folder / named.file)) committed_before.insert(id);
    }
    next_shard = static_cast<std::int64_t>(journal.shards().size());
  }

  void finish_shard();

  fs::path folder;
  int writer;
  std::int64_t vocab_size;
  StoreJournal journal;
  std::unordered_set<std::uint64_t> committed_before, appended;
  std::int64_t next_shard = 0;
  std::int64_t ids_since_commit = 0;
  ReplayShard shard;
};

void ReplayStoreWriter::Impl::finish_shard() {
  if (shard.samples() == 0) return;
  StoreShard entry;
  entry.file = fmt::format("{}{:06}.h5", shard_prefix(writer), next_shard++);
  entry.samples = shard.samples();
  entry.tokens = shard.tokens();
  entry.ids = shard.ids();
  const auto [first, last] = std::minmax_element(shard.sample_ids().begin(), shard.sample_ids().end());
  entry.first_sample = *first;
  entry.last_sample = *last;

  const std::string image = shard.to_hdf5();
  entry.bytes = static_cast<std::int64_t>(image.size());
  entry.sha256 = sha256_hex(image);
  const fs::path path = folder / entry.file;
  OutputFile file(path);
  file.write(0, image.data(), entry.bytes);
  file.finish();
  const bool same =
      sha256_file(path, ErrorKind::kDisk) == entry.sha256 && ReplayShard::from_hdf5(path, vocab_size) == shard;
  require(same, ErrorKind::kDisk, "{}: what was read back is not what was written", path.string());
  journal.add_shard(entry);
  shard.clear();
}

ReplayStoreWriter::ReplayStoreWriter(std::filesystem::path folder, int writer, StoreProvenance provenance,
                                     int num_writers)
    : impl_(std::make_unique<Impl>(std::move(folder), writer, provenance, num_writers)) {}

ReplayStoreWriter::~ReplayStoreWriter() = default;

void ReplayStoreWriter::append(const SampleRecords& records) {
  if (impl_->committed_before.contains(records.sample_id)) return;
  REPRISE_CHECK(impl_->appended.insert(records.sample_id).second, "sample {} is appended twice", records.sample_id);
  for (const std::uint32_t id : records.ids) {
    REPRISE_CHECK(id < impl_->vocab_size, "sample {}: id {} in a vocabulary of {}", records.sample_id, id,
                  impl_->vocab_size);
  }
  impl_->shard.append(records);
  impl_->ids_since_commit += static_cast<std::int64_t>(records.ids.size());
  if (impl_->shard.ids() >= kMaxShardIds) impl_->finish_shard();
}

void ReplayStoreWriter::commit(std::int64_t unit) {
  impl_->finish_shard();
  impl_->ids_since_commit = 0;
  if (unit > impl_->journal.unit()) impl_->journal.add_unit(unit);
}

std::int64_t ReplayStoreWriter::resume_unit() const {
  return impl_->journal.unit();
}

const std::vector<StoreShard>& ReplayStoreWriter::shards() const {
  return impl_->journal.shards();
}

std::int64_t ReplayStoreWriter::open_ids() const {
  return impl_->ids_since_commit;
}

void finish_store(const std::filesystem::path& folder, const StoreProvenance& provenance, int num_writers,
                  const std::string& statistics_json) {
  StoreManifest manifest;
  manifest.provenance = provenance;
  manifest.statistics = statistics_json;
  for (int writer = 0; writer < num_writers; ++writer) {
    require(file_exists(StoreJournal::path(folder, writer)), ErrorKind::kData, "{}: missing: writer {} is not done",
            StoreJournal::path(folder, writer).string(), writer);
    const StoreJournal journal = StoreJournal::read(folder, writer);
    require_same_provenance(folder, journal.provenance(), provenance);
    require(!journal.has_uncommitted(), ErrorKind::kData, "{}: ends with shards that were not committed",
            StoreJournal::path(folder, writer).string());
    for (const StoreShard& shard : journal.shards()) {
      std::error_code error;
      const auto bytes = fs::file_size(folder / shard.file, error);
      require(!error && static_cast<std::int64_t>(bytes) == shard.bytes, ErrorKind::kData,
              "{}: missing or not of {} bytes", (folder / shard.file).string(), shard.bytes);
      manifest.shards.push_back(shard);
    }
  }
  require(!file_exists(StoreJournal::path(folder, num_writers)), ErrorKind::kStoreMismatch,
          "{}: num_writers: there are journals of more than {} writers", folder.string(), num_writers);
  write_store_manifest(folder, manifest);
}

}  // namespace reprise
