#include "core/file_io.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace reprise {

namespace {

[[noreturn]] void fail_system(ErrorKind kind, const std::filesystem::path& path, const char* action, int code) {
  fail(kind, "{}: cannot {}: {}", path.string(), action, std::strerror(code));
}

}  // namespace

InputFile::InputFile(std::filesystem::path path, ErrorKind kind) : path_(std::move(path)), kind_(kind) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) fail_system(kind_, path_, "open", errno);
  struct stat status {};
  const bool regular = ::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular) {
    ::close(std::exchange(descriptor_, -1));
    fail(kind_, "{}: not a regular file", path_.string());
  }
  size_ = static_cast<std::int64_t>(status.st_size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      kind_(other.kind_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(kind_, other.kind_);
  return *this;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void InputFile::read(std::int64_t offset, void* data, std::int64_t count) const {
  auto* bytes = static_cast<char*>(data);
  while (count > 0) {
    const ssize_t got = ::pread(descriptor_, bytes, static_cast<std::size_t>(count), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_system(kind_, path_, "read", errno);
    if (got == 0) fail(kind_, "{}: ends at byte {}, {} bytes were expected there", path_.string(), offset, count);
    bytes += got;
    offset += got;
    count -= got;
  }
}

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)), part_(path_.string() + ".part") {
  descriptor_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_system(ErrorKind::kDisk, part_, "create", errno);
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(part_.c_str());
}

void OutputFile::write(std::int64_t offset, const void* data, std::int64_t count) {
  REPRISE_CHECK(descriptor_ >= 0, "{} is finished", path_.string());
  const auto* bytes = static_cast<const char*>(data);
  while (count > 0) {
    const ssize_t put = ::pwrite(descriptor_, bytes, static_cast<std::size_t>(count), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_system(ErrorKind::kDisk, part_, "write", errno);
    if (put == 0) fail_system(ErrorKind::kDisk, part_, "write", ENOSPC);
    bytes += put;
    offset += put;
    count -= put;
  }
}

void OutputFile::finish() {
  REPRISE_CHECK(descriptor_ >= 0, "{} is finished", path_.string());
  if (::fsync(descriptor_) != 0) fail_system(ErrorKind::kDisk, part_, "fsync", errno);
  // close() can be where a network file system reports a full disk; the descriptor is gone either way.
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    const int code = errno;
    ::unlink(part_.c_str());
    fail_system(ErrorKind::kDisk, part_, "close", code);
  }
  if (::rename(part_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    ::unlink(part_.c_str());
    fail_system(ErrorKind::kDisk, path_, "rename into place", code);
  }
  fsync_folder(path_.parent_path());
}

std::string read_text_file(const std::filesystem::path& path, ErrorKind kind, std::int64_t max_bytes) {
  const InputFile file(path, kind);
  require(file.size() <= max_bytes, kind, "{}: {} bytes, more than the {} allowed here", path.string(), file.size(),
          max_bytes);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(0, text.data(), file.size());
  return text;
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  OutputFile file(path);
  file.write(0, text.data(), static_cast<std::int64_t>(text.size()));
  file.finish();
}

void append_to_file(const std::filesystem::path& path, std::string_view text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (descriptor < 0) fail_system(ErrorKind::kDisk, path, "open for appending", errno);
  const off_t end = ::lseek(descriptor, 0, SEEK_END);
  int code = end < 0 ? errno : 0;
  while (code == 0 && !text.empty()) {
    const ssize_t put = ::write(descriptor, text.data(), text.size());
    if (put > 0) text.remove_prefix(static_cast<std::size_t>(put));
    if (put == 0) code = ENOSPC;
    if (put < 0 && errno != EINTR) code = errno;
  }
  if (code == 0 && ::fsync(descriptor) != 0) code = errno;
  if (code != 0 && end >= 0 && ::ftruncate(descriptor, end) != 0) code = errno;
  if (::close(descriptor) != 0 && code == 0) code = errno;
  if (code != 0) fail_system(ErrorKind::kDisk, path, "append", code);
}

void fsync_folder(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder.empty() ? std::filesystem::path(".") : folder;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_system(ErrorKind::kDisk, path, "open", errno);
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  // Some network file systems refuse to fsync a folder; the rename has happened all the same.
  if (result != 0 && code != EINVAL && code != ENOTSUP) fail_system(ErrorKind::kDisk, path, "fsync", code);
}

}  // namespace reprise
