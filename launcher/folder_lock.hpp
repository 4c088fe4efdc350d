#pragma once

#include <filesystem>

namespace reprise {

/// Holds `<folder>/lock` so that two jobs do not work in one folder; made by one rank. The system frees it however the
/// process ends. Throws Error(kUsage) naming who holds it, Error(kDisk) when the folder cannot be written.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace reprise
