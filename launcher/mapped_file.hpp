#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>

#include "core/error.hpp"

namespace reprise {

/// A file mapped read-only. Throws Error(kind) with path and the system's reason. The file must not shrink meanwhile.
class MappedFile {
 public:
  MappedFile(std::filesystem::path path, ErrorKind kind);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::int64_t size() const { return size_; }
  [[nodiscard]] const std::uint8_t* data() const { return data_; }
  /// The value at a byte offset, which need not be aligned; the caller has checked the bounds.
  template <class T>
  [[nodiscard]] T load(std::int64_t offset) const {
    T value;
    std::memcpy(&value, data_ + offset, sizeof(T));
    return value;
  }

 private:
  std::filesystem::path path_;
  const std::uint8_t* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace reprise
