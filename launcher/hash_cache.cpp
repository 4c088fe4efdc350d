#include "launcher/hash_cache.hpp"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "core/file_io.hpp"
#include "core/stream.hpp"
#include "core/strict_json.hpp"
#include "launcher/sha256_tree.hpp"

namespace reprise {

namespace {

using nlohmann::json;

constexpr std::size_t kHexDigits = 2 * Sha256Digest{}.size();
constexpr auto kSettled = std::chrono::seconds(2);

std::string key_of(const std::filesystem::path& path) {
  return std::filesystem::absolute(path).lexically_normal();
}

/// What tells one state of a file from the next; null when the file cannot be asked or has just changed.
json state_of(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return nullptr;
  const auto time = std::filesystem::last_write_time(path, error);
  if (error || time + kSettled > std::filesystem::file_time_type::clock::now()) return nullptr;
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
  return {{"size", size}, {"modified_ns", nanoseconds}};
}

json read_cache(const std::filesystem::path& cache) {
  try {
    return read_json_object(cache, ErrorKind::kDisk);
  } catch (const Error&) {
    return json::object();
  }
}

bool is_hash(const json& value) {
  if (!value.is_string() || value.get_ref<const std::string&>().size() != kHexDigits) return false;
  const auto& text = value.get_ref<const std::string&>();
  return text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// The remembered hash of each path, or an empty text.
std::vector<std::string> recall(const json& entries, const std::vector<std::filesystem::path>& paths) {
  std::vector<std::string> hashes;
  for (const auto& path : paths) {
    const auto entry = entries.find(key_of(path));
    const json state = state_of(path);
    const bool known = entry != entries.end() && entry->is_object() && !state.is_null() && entry->contains("state") &&
                       (*entry)["state"] == state && entry->contains("sha256_tree") && is_hash((*entry)["sha256_tree"]);
    hashes.push_back(known ? (*entry)["sha256_tree"].get<std::string>() : std::string());
  }
  return hashes;
}

/// Rank 0's texts, each of kHexDigits characters or empty, for every rank.
void share(std::vector<std::string>& hashes, Communicator& world) {
  std::vector<std::uint8_t> bytes(hashes.size() * kHexDigits, 0);
  for (std::size_t i = 0; i < hashes.size(); ++i) std::copy(hashes[i].begin(), hashes[i].end(), &bytes[i * kHexDigits]);
  world.broadcast<std::uint8_t>(Stream(CpuStream{}), bytes, 0);
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    const std::uint8_t* text = &bytes[i * kHexDigits];
    hashes[i] = *text == 0 ? std::string() : std::string(text, text + kHexDigits);
  }
}

}  // namespace

std::vector<std::string> cached_sha256_tree(const std::vector<std::filesystem::path>& paths, ErrorKind kind,
                                            const std::filesystem::path& cache, Communicator* world) {
  if (cache.empty() || paths.empty()) return sha256_tree(paths, kind, world);
  const bool keeps = world == nullptr || world->rank() == 0;
  json entries = keeps ? read_cache(cache) : json::object();
  std::vector<std::string> hashes = keeps ? recall(entries, paths) : std::vector<std::string>(paths.size());
  if (world != nullptr) share(hashes, *world);

  std::vector<std::filesystem::path> unknown;
  std::vector<json> states;  // before the files are read: a change meanwhile makes the entry worthless, not wrong
  for (std::size_t i = 0; i < paths.size(); ++i) {
    if (!hashes[i].empty()) continue;
    unknown.push_back(paths[i]);
    states.push_back(keeps ? state_of(paths[i]) : json());
  }
  if (unknown.empty()) return hashes;
  const std::vector<std::string> computed = sha256_tree(unknown, kind, world);
  auto next = computed.begin();
  for (std::string& hash : hashes) {
    if (hash.empty()) hash = *next++;
  }
  if (!keeps) return hashes;
  for (std::size_t i = 0; i < unknown.size(); ++i) {
    if (!states[i].is_null()) entries[key_of(unknown[i])] = {{"state", states[i]}, {"sha256_tree", computed[i]}};
  }
  try {
    write_file_atomically(cache, entries.dump(1) + "\n");
  } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the next start hashes again
  }
  return hashes;
}

}  // namespace reprise
