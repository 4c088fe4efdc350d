#pragma once

#include <string>

#include "core/stream.hpp"
#include "loss/top_k.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// Adds the statistics of all ranks; the same on every rank. Two all-reduces.
[[nodiscard]] CollectStatistics reduce_statistics(Communicator& world, const Stream& stream,
                                                  const CollectStatistics& own, std::int64_t k_max);

/// As JSON: samples, tokens, ids, gold_outside, at_k_max, mass (sum), set_size (histogram), bucket, and what is derived
/// of them: set_size_quantiles {p5 ... p95}, mass_mean, gold_outside_share.
[[nodiscard]] std::string statistics_to_json(const CollectStatistics& statistics);
/// Reads back what is not derived. Throws Error(kData).
[[nodiscard]] CollectStatistics statistics_from_json(const std::string& text, const std::string& what);

/// Smallest n so that at least `share` of the sets have at most n ids; 0 without sets.
[[nodiscard]] std::int64_t set_size_quantile(const CollectStatistics& statistics, double share);

/// The report of a collection in lines: sizes and histogram of the sets, covered mass, golds outside with a warning
/// above 5 %, confidence buckets, bytes per token beside full bfloat16 logits, and what it means for k_max and
/// tile_tokens.
[[nodiscard]] std::string collection_report(const CollectStatistics& statistics, const TopKOptions& options,
                                            std::int64_t vocab_size, std::int64_t store_bytes);

}  // namespace reprise
