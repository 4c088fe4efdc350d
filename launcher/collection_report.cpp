#include "launcher/collection_report.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.hpp"
#include "core/strict_json.hpp"
#include "launcher/progress.hpp"

namespace reprise {

namespace {

constexpr std::array kQuantiles = {0.05, 0.25, 0.5, 0.75, 0.95};
constexpr double kGoldOutsideWarning = 0.05, kCappedNote = 0.05, kMassNote = 0.02;
constexpr int kHistogramRows = 10, kBarWidth = 40;

double share_of(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string histogram(const CollectStatistics& statistics) {
  if (statistics.tokens == 0) return "";
  const auto& sizes = statistics.set_size;
  std::size_t largest = sizes.size();
  while (largest > 1 && sizes[largest - 1] == 0) --largest;
  const std::size_t width = std::max<std::size_t>(1, (largest + kHistogramRows - 1) / kHistogramRows);
  std::vector<std::int64_t> rows;
  for (std::size_t begin = 0; begin < largest; begin += width) {
    const std::size_t end = std::min(largest, begin + width);
    rows.push_back(std::accumulate(sizes.begin() + static_cast<std::ptrdiff_t>(begin),
                                   sizes.begin() + static_cast<std::ptrdiff_t>(end), std::int64_t{0}));
  }
  const std::int64_t highest = std::max<std::int64_t>(1, *std::max_element(rows.begin(), rows.end()));
  std::string text;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto bar = static_cast<std::size_t>(kBarWidth * rows[row] / highest);
    text += fmt::format("    {:>5} - {:<5} {:>5.1f} %  {}\n", std::max<std::size_t>(1, row * width),
                        std::min(largest, (row + 1) * width) - 1, 100.0 * share_of(rows[row], statistics.tokens),
                        std::string(bar, '#'));
  }
  return text;
}

/// What the numbers advise, one sentence each.
std::string advice(const CollectStatistics& statistics, const TopKOptions& options) {
  std::string text;
  const double outside = share_of(statistics.gold_outside, statistics.tokens);
  const double capped = share_of(statistics.at_k_max, statistics.tokens);
  const double mass = statistics.tokens == 0 ? 0.0 : statistics.mass / static_cast<double>(statistics.tokens);
  if (outside > kGoldOutsideWarning) {
    text += fmt::format(
        "warning: for {:.1f} % of the positions the next token lies outside the base model's set. The base hardly "
        "knows "
        "this data: training on such sets learns less than full cross-entropy. Raise replay.k_max, prefer a large "
        "replay.tile_tokens (or replay.negatives), or train replay.normalization = \"full\".\n",
        100.0 * outside);
  }
  if (options.tau < 1.0 && capped > kCappedNote) {
    text += fmt::format(
        "note: {:.1f} % of the sets are cut at replay.k_max = {} before they cover {}; a larger k_max would cover "
        "more.\n",
        100.0 * capped, options.k_max, options.tau);
  }
  if (options.tau < 1.0 && mass + kMassNote < options.tau) {
    text += fmt::format(
        "note: the sets cover {:.1f} % on average, {:.1f} % were asked for; what is missing stays outside every token "
        "set, so normalise over tiles, not tokens.\n",
        100.0 * mass, 100.0 * options.tau);
  }
  return text;
}

}  // namespace

CollectStatistics reduce_statistics(Communicator& world, const Stream& stream, const CollectStatistics& own,
                                    std::int64_t k_max) {
  std::vector<std::int64_t> counts = {own.samples, own.tokens, own.ids, own.gold_outside, own.at_k_max};
  counts.insert(counts.end(), own.bucket.begin(), own.bucket.end());
  std::vector<std::int64_t> sizes = own.set_size;
  REPRISE_CHECK(static_cast<std::int64_t>(sizes.size()) <= k_max + 1, "a set of {} ids, k_max {}", sizes.size() - 1,
                k_max);
  sizes.resize(static_cast<std::size_t>(k_max + 1));
  counts.insert(counts.end(), sizes.begin(), sizes.end());
  world.all_reduce<std::int64_t>(stream, counts);
  CollectStatistics all;
  world.all_reduce<double>(stream, {&(all.mass = own.mass), 1});

  auto next = counts.begin();
  for (std::int64_t* value : {&all.samples, &all.tokens, &all.ids, &all.gold_outside, &all.at_k_max}) *value = *next++;
  for (std::int64_t& value : all.bucket) value = *next++;
  all.set_size.assign(next, counts.end());
  return all;
}

std::int64_t set_size_quantile(const CollectStatistics& statistics, double share) {
  const double wanted = share * static_cast<double>(statistics.tokens);
  double seen = 0.0;
  for (std::size_t n = 0; n < statistics.set_size.size(); ++n) {
    seen += static_cast<double>(statistics.set_size[n]);
    if (seen >= wanted && seen > 0.0) return static_cast<std::int64_t>(n);
  }
  return 0;
}

std::string statistics_to_json(const CollectStatistics& statistics) {
  nlohmann::ordered_json json;
  json["samples"] = statistics.samples;
  json["tokens"] = statistics.tokens;
  json["ids"] = statistics.ids;
  json["gold_outside"] = statistics.gold_outside;
  json["at_k_max"] = statistics.at_k_max;
  json["mass"] = statistics.mass;
  json["set_size"] = statistics.set_size;
  json["bucket"] = statistics.bucket;
  nlohmann::ordered_json quantiles;
  for (const double share : kQuantiles) {
    quantiles[fmt::format("p{:.0f}", 100.0 * share)] = set_size_quantile(statistics, share);
  }
  json["set_size_quantiles"] = quantiles;
  json["mass_mean"] = statistics.tokens == 0 ? 0.0 : statistics.mass / static_cast<double>(statistics.tokens);
  json["gold_outside_share"] = share_of(statistics.gold_outside, statistics.tokens);
  return json.dump();
}

CollectStatistics statistics_from_json(const std::string& text, const std::string& what) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    CollectStatistics statistics;
    statistics.samples = json.at("samples").get<std::int64_t>();
    statistics.tokens = json.at("tokens").get<std::int64_t>();
    statistics.ids = json.at("ids").get<std::int64_t>();
    statistics.gold_outside = json.at("gold_outside").get<std::int64_t>();
    statistics.at_k_max = json.at("at_k_max").get<std::int64_t>();
    statistics.mass = json.at("mass").get<double>();
    statistics.set_size = json.at("set_size").get<std::vector<std::int64_t>>();
    statistics.bucket = json.at("bucket").get<std::vector<std::int64_t>>();
    require(statistics.bucket.size() == kNumConfidenceBuckets, ErrorKind::kData, "{}: {} confidence buckets", what,
            statistics.bucket.size());
    return statistics;
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::kData, "{}: not the statistics of a collection: {}", what, error.what());
  }
}

std::string collection_report(const CollectStatistics& statistics, const TopKOptions& options, std::int64_t vocab_size,
                              std::int64_t store_bytes) {
  const auto per_token = [&](double value) {
    return statistics.tokens == 0 ? 0.0 : value / static_cast<double>(statistics.tokens);
  };
  std::string text =
      fmt::format("{} positions of {} samples, {} ids, {}\n", format_count(statistics.tokens),
                  format_count(statistics.samples), format_count(statistics.ids), format_bytes(store_bytes));
  text += "  ids in a set:";
  for (const double share : kQuantiles) {
    text += fmt::format("  {}{:.0f} % {}", share == 0.5 ? "median " : "", 100.0 * share,
                        set_size_quantile(statistics, share));
  }
  text += fmt::format("\n{}", histogram(statistics));
  text += fmt::format("  probability covered: {:.2f} % on average\n", 100.0 * per_token(statistics.mass));
  text += fmt::format("  next token outside the set, before it was put in: {:.2f} %\n",
                      100.0 * share_of(statistics.gold_outside, statistics.tokens));
  text += "  by the base model's probability of the next token:";
  for (std::size_t b = 0; b < statistics.bucket.size(); ++b) {
    text += fmt::format("  {:.1f}-{:.1f} {:.1f} %", 0.2 * static_cast<double>(b), 0.2 * static_cast<double>(b + 1),
                        100.0 * share_of(statistics.bucket[b], statistics.tokens));
  }
  const double bytes = per_token(static_cast<double>(store_bytes));
  text += fmt::format("\n  {:.1f} bytes a position, {:.3f} % of its {} bfloat16 logits\n", bytes,
                      100.0 * bytes / (2.0 * static_cast<double>(vocab_size)), format_count(vocab_size));
  return text + advice(statistics, options);
}

}  // namespace reprise
