#include <map>
#include <set>

#include "core/error.hpp"
#include "core/sha256.hpp"
#include "loss/replay_shard.hpp"
#include "loss/replay_store.hpp"
#include "loss/store_manifest.hpp"

namespace reprise {

namespace {

namespace fs = std::filesystem;

/// What is wrong with one shard file, as the first problem found. Notes its samples in `shard_of`.
void verify_shard(const fs::path& folder, const StoreShard& entry, std::int64_t vocab_size,
                  std::map<std::uint64_t, std::string>& shard_of) {
  const fs::path path = folder / entry.file;
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  require(!error, ErrorKind::kData, "{}: {}", path.string(), error.message());
  const ReplayShard shard = ReplayShard::from_hdf5(path, vocab_size);
  require(shard.samples() == entry.samples && shard.tokens() == entry.tokens && shard.ids() == entry.ids &&
              static_cast<std::int64_t>(bytes) == entry.bytes,
          ErrorKind::kData, "{}: {} samples, {} tokens, {} ids, {} bytes; the manifest says {}, {}, {}, {}",
          path.string(), shard.samples(), shard.tokens(), shard.ids(), bytes, entry.samples, entry.tokens, entry.ids,
          entry.bytes);
  for (const std::uint64_t id : shard.sample_ids()) {
    const auto [other, is_new] = shard_of.emplace(id, entry.file);
    require(is_new, ErrorKind::kData, "{}: sample {} is in {} too", path.string(), id, other->second);
    require(entry.first_sample <= id && id <= entry.last_sample, ErrorKind::kData,
            "{}: sample {}; the manifest says {} to {}", path.string(), id, entry.first_sample, entry.last_sample);
  }
  // Last: a wrong hash alone cannot say where the damage is.
  const std::string hash = sha256_file(path, ErrorKind::kData);
  require(hash == entry.sha256, ErrorKind::kData, "{}: SHA-256 is {}, the manifest says {}", path.string(), hash,
          entry.sha256);
}

}  // namespace

std::vector<std::string> verify_store(const std::filesystem::path& folder) {
  std::vector<std::string> problems;
  const auto attempt = [&problems](const auto& body) {
    try {
      body();
      return true;
    } catch (const Error& error) {
      problems.emplace_back(error.what());
      return false;
    }
  };

  StoreManifest manifest;
  std::int64_t vocab_size = 0;
  const bool has_manifest = attempt([&] {
    manifest = read_store_manifest(folder);
    vocab_size = vocab_size_of(folder, manifest.provenance);
  });
  if (!has_manifest) return problems;

  std::set<std::string> named;
  std::map<std::uint64_t, std::string> shard_of;
  for (const StoreShard& entry : manifest.shards) {
    if (!named.insert(entry.file).second) problems.push_back(fmt::format("{}: named twice", entry.file));
    attempt([&] { verify_shard(folder, entry, vocab_size, shard_of); });
  }

  std::set<std::string> journaled;
  for (int writer = 0; file_exists(StoreJournal::path(folder, writer)); ++writer) {
    attempt([&] {
      const StoreJournal journal = StoreJournal::read(folder, writer);
      require_same_provenance(folder, journal.provenance(), manifest.provenance);
      for (const StoreShard& shard : journal.shards()) journaled.insert(shard.file);
    });
  }
  for (const std::string& file : named) {
    if (!journaled.contains(file)) problems.push_back(fmt::format("{}: no journal names it", (folder / file).string()));
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const bool is_stray = name.ends_with(".part") || (name.ends_with(".h5") && !named.contains(name));
    if (is_stray) problems.push_back(fmt::format("{}: not part of the store", entry.path().string()));
  }
  return problems;
}

}  // namespace reprise
