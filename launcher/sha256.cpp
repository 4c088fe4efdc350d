#include "launcher/sha256.hpp"

#include <openssl/evp.h>

#include <algorithm>

#include "core/stream.hpp"
#include "launcher/file_io.hpp"
#include "parallel/shard.hpp"

namespace reprise {

struct Sha256::Impl {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  REPRISE_CHECK(impl_->context != nullptr && EVP_DigestInit_ex(impl_->context, EVP_sha256(), nullptr) == 1,
                "OpenSSL offers no SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::update(const void* data, std::size_t bytes) {
  REPRISE_CHECK(EVP_DigestUpdate(impl_->context, data, bytes) == 1, "SHA-256 update of {} bytes", bytes);
}

Sha256Digest Sha256::digest() {
  Sha256Digest digest{};
  unsigned int size = 0;
  REPRISE_CHECK(EVP_DigestFinal_ex(impl_->context, digest.data(), &size) == 1 && size == digest.size(),
                "SHA-256 gave {} bytes", size);
  return digest;
}

std::string to_hex(const Sha256Digest& digest) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string sha256_hex(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return to_hex(hash.digest());
}

std::string sha256_file(const std::filesystem::path& path, ErrorKind kind) {
  const InputFile file(path, kind);
  Sha256 hash;
  std::string chunk(static_cast<std::size_t>(std::min(kHashChunkBytes, file.size())), '\0');
  for (std::int64_t begin = 0; begin < file.size(); begin += kHashChunkBytes) {
    const std::int64_t count = std::min(kHashChunkBytes, file.size() - begin);
    file.read(begin, chunk.data(), count);
    hash.update(chunk.data(), static_cast<std::size_t>(count));
  }
  return to_hex(hash.digest());
}

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
