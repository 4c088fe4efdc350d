#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "launcher/collection_report.hpp"
#include "launcher/commands.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"
#include "loss/replay_store.hpp"

namespace reprise {

namespace {

/// A number of the provenance, which a manifest that was read may lack or spell badly.
template <class T>
T number_of(const StoreProvenance& provenance, const std::string& key) {
  const auto found = provenance.find(key);
  T value{};
  if (found == provenance.end()) return value;
  std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  return value;
}

TopKOptions options_of(const StoreProvenance& provenance) {
  TopKOptions options;
  options.tau = number_of<double>(provenance, "tau");
  options.k_max = number_of<std::int64_t>(provenance, "k_max");
  return options;
}

double share_of_logits(const StoreManifest& manifest, std::int64_t vocab_size) {
  const double logits = 2.0 * static_cast<double>(vocab_size) * static_cast<double>(manifest.tokens());
  return logits == 0.0 ? 0.0 : static_cast<double>(manifest.bytes()) / logits;
}

void print_json(const std::filesystem::path& folder, const StoreManifest& manifest, std::int64_t vocab_size) {
  nlohmann::ordered_json json;
  json["folder"] = folder.string();
  json["version"] = fmt::format("{}.{}", manifest.version_major, manifest.version_minor);
  json["samples"] = manifest.samples();
  json["positions"] = manifest.tokens();
  json["ids"] = manifest.ids();
  json["bytes"] = manifest.bytes();
  json["bytes_per_position"] =
      static_cast<double>(manifest.bytes()) / static_cast<double>(std::max<std::int64_t>(1, manifest.tokens()));
  json["share_of_bfloat16_logits"] = share_of_logits(manifest, vocab_size);
  json["shards"] = manifest.shards.size();
  json["provenance"] = manifest.provenance;
  json["statistics"] = nlohmann::ordered_json::parse(manifest.statistics);
  fmt::print("{}\n", json.dump(2));
}

std::string ids_of(const SampleRecords& records, std::int64_t record) {
  constexpr std::int64_t kShown = 12;
  const auto begin = records.id_begin[static_cast<std::size_t>(record)];
  const auto end = records.id_begin[static_cast<std::size_t>(record) + 1];
  const auto first = records.ids.begin() + begin;
  std::string text = fmt::format("{}", fmt::join(first, first + std::min(end - begin, kShown), " "));
  if (end - begin > kShown) text += fmt::format(" ... {}", records.ids[static_cast<std::size_t>(end - 1)]);
  return text;
}

}  // namespace

void store_info_command(const std::filesystem::path& folder, bool json) {
  const ReplayStoreReader store(folder);
  const StoreManifest& manifest = store.manifest();
  const auto vocab_size = number_of<std::int64_t>(manifest.provenance, "vocab_size");
  if (json) return print_json(folder, manifest, vocab_size);
  fmt::print("{}: replay store, format {}.{}, {} shard{}\n", folder.string(), manifest.version_major,
             manifest.version_minor, manifest.shards.size(), manifest.shards.size() == 1 ? "" : "s");
  const CollectStatistics statistics = statistics_from_json(manifest.statistics, (folder / "manifest.json").string());
  fmt::print("{}", collection_report(statistics, options_of(manifest.provenance), vocab_size, manifest.bytes()));
  fmt::print("  {:.4f} % of all its bfloat16 logits\n\ncollected from\n",
             100.0 * share_of_logits(manifest, vocab_size));
  TextTable table("ll");
  for (const auto& [key, value] : manifest.provenance) table.add({key, value});
  fmt::print("{}", table.text());
}

void store_verify_command(const std::filesystem::path& folder) {
  const std::vector<std::string> problems = verify_store(folder);
  if (problems.empty()) {
    const ReplayStoreReader store(folder);
    fmt::print("{}: sound, {} positions of {} samples\n", folder.string(), format_count(store.manifest().tokens()),
               format_count(store.manifest().samples()));
    return;
  }
  fail(ErrorKind::kData, "{}: {} problem{}\n{}\ncollect again with --fresh, or bring back a copy", folder.string(),
       problems.size(), problems.size() == 1 ? "" : "s", fmt::join(problems, "\n"));
}

void store_show_command(const std::filesystem::path& folder, std::uint64_t sample, std::int64_t limit) {
  const ReplayStoreReader store(folder);
  require(store.contains(sample), ErrorKind::kUsage, "{}: no sample {}; it holds {} samples", folder.string(), sample,
          format_count(store.manifest().samples()));
  const SampleRecords records = store.read(sample);
  fmt::print("sample {}: {} positions, hash {:016x}\n", sample, records.size(), records.sample_hash);
  TextTable table("rrrrlrl");
  table.add({"position", "next", "p(next)", "covered", "", "ids", ""});
  const std::int64_t shown = std::min(limit, records.size());
  for (std::int64_t t = 0; t < shown; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const bool forced = (records.flags[i] & SampleRecords::kGoldForced) != 0;
    table.add({fmt::format("{}", records.position[i]), fmt::format("{}", records.gold[i]),
               fmt::format("{:.4f}", records.confidence[i]), fmt::format("{:.4f}", records.mass[i]),
               forced ? "put in" : "", fmt::format("{}", records.id_begin[i + 1] - records.id_begin[i]),
               ids_of(records, t)});
  }
  fmt::print("{}", table.text());
  if (shown < records.size()) fmt::print("  and {} more (--limit)\n", records.size() - shown);
}

}  // namespace reprise
