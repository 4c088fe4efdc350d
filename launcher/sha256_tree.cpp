#include "launcher/sha256_tree.hpp"

#include <algorithm>

#include "core/file_io.hpp"
#include "core/stream.hpp"
#include "parallel/shard.hpp"

namespace reprise {

namespace {

struct Chunk {
  std::size_t file = 0;
  std::int64_t begin = 0, count = 0;
};

std::vector<Chunk> chunks_of(const std::vector<InputFile>& files) {
  std::vector<Chunk> chunks;
  for (std::size_t f = 0; f < files.size(); ++f) {
    for (std::int64_t begin = 0; begin < files[f].size(); begin += kHashChunkBytes) {
      chunks.push_back({f, begin, std::min(kHashChunkBytes, files[f].size() - begin)});
    }
  }
  return chunks;
}

/// Digests of chunks [range), one behind the other.
std::vector<std::uint8_t> digests_of(const std::vector<InputFile>& files, const std::vector<Chunk>& chunks,
                                     Range range) {
  std::vector<std::uint8_t> digests;
  std::string bytes;
  for (std::int64_t c = range.begin; c < range.end; ++c) {
    const Chunk& chunk = chunks[static_cast<std::size_t>(c)];
    bytes.resize(static_cast<std::size_t>(chunk.count));
    files[chunk.file].read(chunk.begin, bytes.data(), chunk.count);
    Sha256 hash;
    hash.update(bytes);
    const Sha256Digest digest = hash.digest();
    digests.insert(digests.end(), digest.begin(), digest.end());
  }
  return digests;
}

}  // namespace

std::vector<std::string> sha256_tree(const std::vector<std::filesystem::path>& paths, ErrorKind kind,
                                     Communicator* world) {
  std::vector<InputFile> files;
  for (const auto& path : paths) files.emplace_back(path, kind);
  const std::vector<Chunk> chunks = chunks_of(files);
  const auto total = static_cast<std::int64_t>(chunks.size());
  constexpr auto kDigestBytes = static_cast<std::int64_t>(Sha256Digest{}.size());

  std::vector<std::uint8_t> digests;
  if (world == nullptr) {
    digests = digests_of(files, chunks, {0, total});
  } else {
    const auto own = digests_of(files, chunks, even_shard(total, world->size(), world->rank()));
    std::vector<std::int64_t> counts;
    for (int r = 0; r < world->size(); ++r) counts.push_back(even_shard(total, world->size(), r).size() * kDigestBytes);
    digests.resize(static_cast<std::size_t>(total * kDigestBytes));
    world->all_gather<std::uint8_t>(Stream(CpuStream{}), own, digests, counts);
  }

  std::vector<Sha256> trees(files.size());
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    trees[chunks[c].file].update(digests.data() + c * Sha256Digest{}.size(), Sha256Digest{}.size());
  }
  std::vector<std::string> hashes;
  for (Sha256& tree : trees) hashes.push_back(to_hex(tree.digest()));
  return hashes;
}

}  // namespace reprise
