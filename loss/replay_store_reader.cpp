#include <algorithm>
#include <map>
#include <tuple>

#include "core/error.hpp"
#include "loss/replay_shard.hpp"
#include "loss/replay_store.hpp"
#include "loss/store_manifest.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

std::int64_t sum_over(const std::vector<StoreShard>& shards, std::int64_t StoreShard::*member) {
  std::int64_t sum = 0;
  for (const StoreShard& shard : shards) sum += shard.*member;
  return sum;
}

ReplayShard load_shard(const fs::path& folder, const StoreShard& entry, std::int64_t vocab_size) {
  const fs::path path = folder / entry.file;
  ReplayShard shard = ReplayShard::from_hdf5(path, vocab_size);
  require(shard.samples() == entry.samples && shard.tokens() == entry.tokens && shard.ids() == entry.ids,
          ErrorKind::kData, "{}: {} samples, {} tokens, {} ids; the manifest says {}, {}, {}", path.string(),
          shard.samples(), shard.tokens(), shard.ids(), entry.samples, entry.tokens, entry.ids);
  return shard;
}

}  // namespace

std::int64_t StoreManifest::samples() const {
  return sum_over(shards, &StoreShard::samples);
}
std::int64_t StoreManifest::tokens() const {
  return sum_over(shards, &StoreShard::tokens);
}
std::int64_t StoreManifest::ids() const {
  return sum_over(shards, &StoreShard::ids);
}
std::int64_t StoreManifest::bytes() const {
  return sum_over(shards, &StoreShard::bytes);
}

void visit_shard(const std::filesystem::path& folder, const StoreShard& shard, std::int64_t vocab_size,
                 const std::function<void(const SampleRecords&)>& visit) {
  const ReplayShard loaded = load_shard(folder, shard, vocab_size);
  for (std::int64_t s = 0; s < loaded.samples(); ++s) visit(loaded.sample(s));
}

struct ReplayStoreReader::Impl {
  struct Place {
    std::uint64_t sample_id;
    std::uint32_t shard, index;
    friend bool operator<(const Place& a, const Place& b) { return a.sample_id < b.sample_id; }
  };

  explicit Impl(fs::path store_folder)
      : folder(std::move(store_folder)),
        manifest(read_store_manifest(folder)),
        vocab_size(vocab_size_of(folder, manifest.provenance)),
        shards(manifest.shards.size()) {
    for (std::size_t f = 0; f < manifest.shards.size(); ++f) index_shard(f);
    std::sort(places.begin(), places.end());
    const auto twice = std::adjacent_find(places.begin(), places.end(),
                                          [](const auto& a, const auto& b) { return a.sample_id == b.sample_id; });
    require(twice == places.end(), ErrorKind::kData, "{}: sample {} is in {} and in {}", folder.string(),
            twice == places.end() ? 0 : twice->sample_id,
            twice == places.end() ? "" : manifest.shards[twice[0].shard].file,
            twice == places.end() ? "" : manifest.shards[twice[1].shard].file);
  }

  void index_shard(std::size_t f) {
    const StoreShard& entry = manifest.shards[f];
    const std::vector<std::uint64_t> ids = read_sample_ids(folder / entry.file);
    require(static_cast<std::int64_t>(ids.size()) == entry.samples, ErrorKind::kData,
            "{}: {} samples; the manifest says {}", (folder / entry.file).string(), ids.size(), entry.samples);
    for (std::size_t s = 0; s < ids.size(); ++s) {
      places.push_back({ids[s], static_cast<std::uint32_t>(f), static_cast<std::uint32_t>(s)});
    }
  }

  [[nodiscard]] const Place* find(std::uint64_t sample_id) const {
    const auto found = std::lower_bound(places.begin(), places.end(), Place{sample_id, 0, 0});
    return found != places.end() && found->sample_id == sample_id ? &*found : nullptr;
  }

  fs::path folder;
  StoreManifest manifest;
  std::int64_t vocab_size;
  std::vector<Place> places;                         // by sample id
  std::vector<std::unique_ptr<ReplayShard>> shards;  // loaded at the first read of one of its samples
};

ReplayStoreReader::ReplayStoreReader(std::filesystem::path folder) : impl_(std::make_unique<Impl>(std::move(folder))) {}

ReplayStoreReader::~ReplayStoreReader() = default;

const StoreManifest& ReplayStoreReader::manifest() const {
  return impl_->manifest;
}

void ReplayStoreReader::require_provenance(const StoreProvenance& expected) const {
  require_same_provenance(impl_->folder, impl_->manifest.provenance, expected);
}

bool ReplayStoreReader::contains(std::uint64_t sample_id) const {
  return impl_->find(sample_id) != nullptr;
}

SampleRecords ReplayStoreReader::read(std::uint64_t sample_id) const {
  const Impl::Place* place = impl_->find(sample_id);
  require(place != nullptr, ErrorKind::kStoreMismatch, "{}: no sample {}; collect again with this data",
          impl_->folder.string(), sample_id);
  auto& shard = impl_->shards[place->shard];
  if (shard == nullptr) {
    const StoreShard& entry = impl_->manifest.shards[place->shard];
    shard = std::make_unique<ReplayShard>(load_shard(impl_->folder, entry, impl_->vocab_size));
  }
  return shard->sample(place->index);
}

std::vector<std::uint64_t> ReplayStoreReader::sample_ids() const {
  std::vector<std::uint64_t> ids;
  ids.reserve(impl_->places.size());
  for (const auto& place : impl_->places) ids.push_back(place.sample_id);
  return ids;
}

}  // namespace reprise
