#include "loss/store_manifest.hpp"

#include <charconv>
#include <nlohmann/json.hpp>

#include "core/file_io.hpp"
#include "core/strict_json.hpp"

namespace reprise {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "reprise-store";

template <class T>
T field(const Json& object, const char* key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  require(found != object.end(), ErrorKind::kData, "{}: \"{}\" is missing", where, key);
  if constexpr (std::is_same_v<T, std::string>) {
    require(found->is_string(), ErrorKind::kData, "{}: \"{}\" must be a string", where, key);
  } else {
    constexpr std::uint64_t kMost = std::numeric_limits<T>::max();
    require(found->is_number_unsigned() && found->template get<std::uint64_t>() <= kMost, ErrorKind::kData,
            "{}: \"{}\" must be an integer that is not negative", where, key);
  }
  return found->template get<T>();
}

const Json& child(const Json& object, const char* key, Json::value_t type, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  require(found != object.end() && found->type() == type, ErrorKind::kData, "{}: \"{}\" is missing or of another type",
          where, key);
  return *found;
}

Json to_json(const StoreShard& shard) {
  return {{"file", shard.file},
          {"samples", shard.samples},
          {"tokens", shard.tokens},
          {"ids", shard.ids},
          {"bytes", shard.bytes},
          {"first_sample", shard.first_sample},
          {"last_sample", shard.last_sample},
          {"sha256", shard.sha256}};
}

StoreShard shard_from(const Json& json, const std::string& where) {
  StoreShard shard;
  shard.file = field<std::string>(json, "file", where);
  require(shard.file.starts_with("shard-") && shard.file.ends_with(".h5") && shard.file.find('/') == std::string::npos,
          ErrorKind::kData, "{}: \"{}\" is no name of a shard", where, shard.file);
  shard.samples = field<std::int64_t>(json, "samples", where);
  shard.tokens = field<std::int64_t>(json, "tokens", where);
  shard.ids = field<std::int64_t>(json, "ids", where);
  shard.bytes = field<std::int64_t>(json, "bytes", where);
  shard.first_sample = field<std::uint64_t>(json, "first_sample", where);
  shard.last_sample = field<std::uint64_t>(json, "last_sample", where);
  shard.sha256 = field<std::string>(json, "sha256", where);
  return shard;
}

StoreProvenance provenance_from(const Json& object, const std::string& where) {
  StoreProvenance provenance;
  for (const auto& [key, value] : child(object, "provenance", Json::value_t::object, where).items()) {
    require(value.is_string(), ErrorKind::kData, "{}: provenance \"{}\" must be a string", where, key);
    provenance[key] = value.get<std::string>();
  }
  return provenance;
}

std::string version_text() {
  return fmt::format("{}.{}", kStoreVersionMajor, kStoreVersionMinor);
}

/// Checks format and major version; returns the minor one.
int check_version(const Json& object, const std::string& where) {
  require(field<std::string>(object, "format", where) == kFormat, ErrorKind::kData, "{}: not of a replay store", where);
  const std::string version = field<std::string>(object, "version", where);
  int major = -1, minor = -1;
  const char* end = version.data() + version.size();
  const auto dot = std::from_chars(version.data(), end, major);
  const bool sound = dot.ec == std::errc() && dot.ptr != end && *dot.ptr == '.' &&
                     std::from_chars(dot.ptr + 1, end, minor).ptr == end && minor >= 0;
  require(sound, ErrorKind::kData, "{}: version \"{}\" is not of the form 1.0", where, version);
  require(major == kStoreVersionMajor, ErrorKind::kData,
          "{}: format version {}, this program reads version {}; use a newer reprise, or collect again", where, version,
          kStoreVersionMajor);
  return minor;
}

}  // namespace

StoreManifest read_store_manifest(const std::filesystem::path& folder) {
  const std::filesystem::path path = manifest_path(folder);
  const std::string where = path.string();
  require(file_exists(path), ErrorKind::kData,
          "{}: no manifest.json: the store is incomplete; run collect again, it goes on where it stopped",
          folder.string());
  const Json json = parse_ordered_json(read_text_file(path, ErrorKind::kData), where, ErrorKind::kData);
  StoreManifest manifest;
  manifest.version_minor = check_version(json, where);
  manifest.provenance = provenance_from(json, where);
  const Json& shards = child(json, "shards", Json::value_t::array, where);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    manifest.shards.push_back(shard_from(shards[i], fmt::format("{}: shard {}", where, i)));
  }
  manifest.statistics = child(json, "statistics", Json::value_t::object, where).dump();
  return manifest;
}

void write_store_manifest(const std::filesystem::path& folder, const StoreManifest& manifest) {
  Json shards = Json::array();
  for (const StoreShard& shard : manifest.shards) shards.push_back(to_json(shard));
  const Json json = {
      {"format", kFormat},
      {"version", version_text()},
      {"provenance", manifest.provenance},
      {"totals",
       {{"samples", manifest.samples()},
        {"tokens", manifest.tokens()},
        {"ids", manifest.ids()},
        {"bytes", manifest.bytes()}}},
      {"statistics", parse_ordered_json(manifest.statistics, "statistics of the collection", ErrorKind::kInternal)},
      {"shards", shards}};
  write_file_atomically(manifest_path(folder), json.dump(1) + "\n");
}

void require_same_provenance(const std::filesystem::path& folder, const StoreProvenance& found,
                             const StoreProvenance& expected) {
  std::string differences;
  int count = 0;
  for (const auto& [key, value] : expected) {
    const auto entry = found.find(key);
    if (entry != found.end() && entry->second == value) continue;
    if (++count > 3) continue;
    const std::string stored = entry == found.end() ? "nothing" : fmt::format("\"{}\"", entry->second);
    differences += fmt::format("{}{}: the store has {}, this run \"{}\"", count == 1 ? "" : "; ", key, stored, value);
  }
  if (count > 3) differences += fmt::format("; and {} more", count - 3);
  require(count == 0, ErrorKind::kStoreMismatch,
          "{} was not collected for this run ({}); collect into another folder, or use what the store was made from",
          folder.string(), differences);
}

std::int64_t vocab_size_of(const std::filesystem::path& folder, const StoreProvenance& provenance) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  const auto entry = provenance.find("vocab_size");
  if (entry == provenance.end()) return kMost;
  const std::string& text = entry->second;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value >= 1 && value <= kMost, ErrorKind::kData,
          "{}: provenance vocab_size = \"{}\"", folder.string(), text);
  return value;
}

// ---- journal
// ----------------------------------------------------------------------------------------------------------

std::filesystem::path StoreJournal::path(const std::filesystem::path& folder, int writer) {
  return folder / fmt::format("journal-r{:04}.jsonl", writer);
}

StoreJournal StoreJournal::begin(const std::filesystem::path& folder, int writer, int num_writers,
                                 const StoreProvenance& provenance) {
  StoreJournal journal;
  journal.path_ = path(folder, writer);
  journal.provenance_ = provenance;
  journal.num_writers_ = num_writers;
  const Json first = {{"format", kFormat},
                      {"version", version_text()},
                      {"writer", writer},
                      {"num_writers", num_writers},
                      {"provenance", provenance}};
  journal.text_ = first.dump() + "\n";
  write_file_atomically(journal.path_, journal.text_);
  return journal;
}

StoreJournal StoreJournal::read(const std::filesystem::path& folder, int writer) {
  StoreJournal journal;
  journal.path_ = path(folder, writer);
  const std::string text = read_text_file(journal.path_, ErrorKind::kData);
  std::size_t begin = 0, committed = 0;
  for (std::int64_t number = 1; begin < text.size(); ++number) {
    const std::size_t end = text.find('\n', begin);
    journal.is_torn_ = end == std::string::npos;
    if (journal.is_torn_) break;
    journal.take_line(text.substr(begin, end - begin), number);
    begin = end + 1;
    if (number == 1 || journal.pending_.empty()) committed = begin;
  }
  require(committed > 0, ErrorKind::kData, "{}: empty; remove it and collect again", journal.path_.string());
  journal.text_ = text.substr(0, committed);
  return journal;
}

void StoreJournal::take_line(const std::string& line, std::int64_t number) {
  const std::string where = fmt::format("{}, line {}", path_.string(), number);
  const Json json = parse_ordered_json(line, where, ErrorKind::kData);
  if (number == 1) {
    (void)check_version(json, where);
    num_writers_ = field<int>(json, "num_writers", where);
    provenance_ = provenance_from(json, where);
  } else if (json.is_object() && json.contains("unit")) {
    unit_ = field<std::int64_t>(json, "unit", where);
    committed_.insert(committed_.end(), pending_.begin(), pending_.end());
    pending_.clear();
  } else {
    pending_.push_back(shard_from(json, where));
  }
}

void StoreJournal::drop_uncommitted() {
  if (!has_uncommitted()) return;
  write_file_atomically(path_, text_);
  pending_.clear();
  is_torn_ = false;
}

void StoreJournal::add_shard(const StoreShard& shard) {
  append_to_file(path_, to_json(shard).dump() + "\n");
  pending_.push_back(shard);
}

void StoreJournal::add_unit(std::int64_t unit) {
  append_to_file(path_, Json{{"unit", unit}}.dump() + "\n");
  unit_ = unit;
  committed_.insert(committed_.end(), pending_.begin(), pending_.end());
  pending_.clear();
}

}  // namespace reprise
