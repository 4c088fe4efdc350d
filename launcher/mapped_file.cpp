#include "launcher/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace reprise {

MappedFile::MappedFile(std::filesystem::path path, ErrorKind kind) : path_(std::move(path)) {
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, kind, "{}: cannot open: {}", path_.string(), std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<std::int64_t>(status.st_size) : 0;
  void* address = nullptr;
  if (size_ > 0) address = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, descriptor, 0);
  const int code = errno;
  ::close(descriptor);
  require(regular, kind, "{}: not a regular file", path_.string());
  require(address != MAP_FAILED, kind, "{}: cannot map {} bytes: {}", path_.string(), size_, std::strerror(code));
  data_ = static_cast<const std::uint8_t*>(address);
}

MappedFile::~MappedFile() {
  // munmap takes a non-const pointer although it changes nothing that data_ could see.
  if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), static_cast<std::size_t>(size_));
}

}  // namespace reprise
