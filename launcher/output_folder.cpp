#include "launcher/output_folder.hpp"

#include "core/error.hpp"
#include "core/file_io.hpp"

namespace reprise {

std::filesystem::path begin_folder(const std::filesystem::path& output) {
  require(
      !std::filesystem::exists(output) || (std::filesystem::is_directory(output) && std::filesystem::is_empty(output)),
      ErrorKind::kUsage, "{}: exists and is not an empty folder; name another or remove it", output.string());
  const std::filesystem::path part = output.string() + ".part";
  std::error_code error;
  std::filesystem::remove_all(part, error);
  if (!error) std::filesystem::create_directories(part, error);
  require(!error, ErrorKind::kDisk, "{}: cannot create: {}", part.string(), error.message());
  return part;
}

void finish_folder(const std::filesystem::path& part, const std::filesystem::path& target) {
  const std::filesystem::path output = std::filesystem::absolute(target / "").parent_path();
  fsync_folder(part);
  std::error_code error;
  std::filesystem::remove(output, error);  // at most an empty folder
  if (!error) std::filesystem::rename(part, output, error);
  require(!error, ErrorKind::kDisk, "{}: cannot rename into place: {}", output.string(), error.message());
  fsync_folder(output.parent_path());
}

}  // namespace reprise
