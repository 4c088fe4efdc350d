#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/stream.hpp"
#include "loss/candidate_tiles.hpp"
#include "loss/loss.hpp"

namespace reprise {

/// How peaked the token distributions are from which sets are drawn. A token's logits are
///   z_v = -slope log(v + 3.7) + context_spread <c, e_v> / sqrt(rank) + noise Gumbel
/// with normal e_v and contexts c that share half of their variance within a document of 512 tokens.
struct SetGenerator {
  std::string_view name;
  double slope, context_spread, noise;
  std::int64_t rank;
};
inline constexpr SetGenerator kSetGenerators[] = {
    {"lm", 1.2, 3.0, 0.3, 128},      // closest to a peaked language model
    {"mid", 1.0, 3.0, 1.0, 32},      //
    {"uniform", 0.0, 0.0, 1.0, 32},  // no two tokens share more than by chance
};

/// Top-K sets of `tokens` consecutive positions; gold is the K-th id. Deterministic.
[[nodiscard]] SampleRecords make_candidate_sets(const CpuStream& stream, const SetGenerator& generator,
                                                std::int64_t tokens, std::int64_t vocab, std::int64_t k);

/// One micro-batch in which every record is a target of weight 1, cut into tiles of `tile_tokens`.
struct HeadBatch {
  std::vector<std::int32_t> row, gold;
  std::vector<float> weight;
  CandidateTilesBuilder tiles;

  HeadBatch(const SampleRecords& records, std::int64_t tile_tokens);
  [[nodiscard]] LossBatch view() const { return {row, gold, weight, tiles.view(), {}}; }
  [[nodiscard]] std::int64_t tokens() const { return std::ssize(row); }
};

}  // namespace reprise
