#include "core/sha256.hpp"

#include <openssl/evp.h>

#include <algorithm>

#include "core/file_io.hpp"

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

}  // namespace reprise
