#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace reprise {

using Sha256Digest = std::array<std::uint8_t, 32>;

/// Incremental SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(const void* data, std::size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  /// Ends the message; the object may not be updated afterwards.
  [[nodiscard]] Sha256Digest digest();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

[[nodiscard]] std::string to_hex(const Sha256Digest& digest);
[[nodiscard]] std::string sha256_hex(std::string_view text);
/// SHA-256 of a whole file, as `sha256sum` prints it. Throws Error(kind).
[[nodiscard]] std::string sha256_file(const std::filesystem::path& path, ErrorKind kind);

/// How much of a file is read at a time; also the chunk of tree hashes.
inline constexpr std::int64_t kHashChunkBytes = std::int64_t{4} << 20;

}  // namespace reprise
