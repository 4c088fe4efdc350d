#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/error.hpp"

namespace reprise {

/// An open file read at explicit offsets (pread), so that threads may share it. Failures throw Error(kind) with path,
/// offset and the system's reason.
class InputFile {
 public:
  InputFile(std::filesystem::path path, ErrorKind kind);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Bytes when it was opened.
  [[nodiscard]] std::int64_t size() const { return size_; }
  /// Reads exactly `count` bytes; a shorter file is an error.
  void read(std::int64_t offset, void* data, std::int64_t count) const;
  [[nodiscard]] ErrorKind kind() const { return kind_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
  ErrorKind kind_ = ErrorKind::kUsage;
};

/// A file that appears under its name only when it is whole: written as `<path>.part`, fsynced, renamed, the folder
/// fsynced. Dropped without `finish()`, nothing is left behind. Failures throw Error(kDisk).
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::int64_t offset, const void* data, std::int64_t count);
  void finish();
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_, part_;
  int descriptor_ = -1;
};

/// The whole file; refuses one larger than `max_bytes` before any allocation.
[[nodiscard]] std::string read_text_file(const std::filesystem::path& path, ErrorKind kind,
                                         std::int64_t max_bytes = std::int64_t{64} << 20);
/// Writes through OutputFile.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);
/// Appends to an existing file and fsyncs it; what a failed write may have left is cut off again.
void append_to_file(const std::filesystem::path& path, std::string_view text);
/// Makes renames inside `folder` durable.
void fsync_folder(const std::filesystem::path& folder);

}  // namespace reprise
