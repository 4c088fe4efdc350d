#include "launcher/folder_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "core/error.hpp"
#include "launcher/machine_info.hpp"

namespace reprise {

FolderLock::FolderLock(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require(!error, ErrorKind::kDisk, "{}: cannot be made: {}; check its path and permissions", folder.string(),
          error.message());
  const std::filesystem::path path = folder / "lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  require(descriptor_ >= 0, ErrorKind::kDisk, "{}: cannot be written: {}; check its path and permissions",
          path.string(), std::strerror(errno));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    std::array<char, 256> holder{};
    const ssize_t count = ::read(descriptor_, holder.data(), holder.size() - 1);
    ::close(descriptor_);
    fail(ErrorKind::kUsage, "{}: in use by {}; wait for its end or name another folder", folder.string(),
         count > 0 ? std::string(holder.data()) : "another process");
  }
  const std::string text = fmt::format("process {} on {}", ::getpid(), read_machine_info().host);
  // Only for the message above, so a full disk is no reason to stop here.
  if (::ftruncate(descriptor_, 0) == 0) (void)!::write(descriptor_, text.data(), text.size());
}

FolderLock::~FolderLock() {
  ::close(descriptor_);
}

}  // namespace reprise
