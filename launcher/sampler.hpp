#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "loss/local_top_k.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// From which tokens the next one is drawn: temperature first, then top_k, then top_p of what is left.
struct SamplingRule {
  double temperature = 0.0;  ///< of softmax(z / temperature); 0 = the largest logit, without any draw
  std::int64_t top_k = 0;    ///< that many most probable tokens, the smaller id first among equals; 0 = all
  double top_p = 1.0;        ///< the fewest most probable tokens whose share of the mass reaches it
  std::uint64_t seed = 1;
};

/// Throws Error(kUsage) naming the flag for values out of range.
void check_sampling_rule(const SamplingRule& rule);

/// What a draw depends on, beside the seed and the logits.
struct DrawPlace {
  std::uint64_t prompt = 0;    ///< its number in the data
  std::uint64_t sample = 0;    ///< which continuation of the prompt
  std::uint64_t position = 0;  ///< of the new token in its document
};

/// In [0, 1), a hash of the seed and the place.
[[nodiscard]] double uniform_draw(std::uint64_t seed, const DrawPlace& place);

/// What one vocabulary shard tells of a row of logits that are divided by the temperature.
struct ShardOfRow {
  ShardStatistics statistics{};
  std::span<const Candidate> sorted;  ///< its first candidates
};

/// The drawn token. All tokens stand in one line, by logit falling, then by id rising; those that top_k and top_p leave
/// come first, and the token is the first whose summed mass exceeds uniform * the mass of those. Needs the first tokens
/// of the line only: the first `known` are told for certain (each shard gave its first `known`, or all it has). None
/// when they are not enough. Sums in float64; a mass within 2^-40 below top_p has reached it.
[[nodiscard]] std::optional<Candidate> draw_token(std::span<const ShardOfRow> shards, std::int64_t known,
                                                  std::int64_t vocab_size, const SamplingRule& rule, double uniform);

struct NextToken {
  std::int32_t id = -1;
  float log_prob = 0.0f;  ///< under the model itself (temperature 1, all tokens); only when asked for
};

/// The next token of every row of this rank's logits [documents, vocab.ids(tp_rank)], the same on every tp rank.
/// Consumes the logits. The same logits give the same tokens however the vocabulary is cut, but for the rounding of
/// float64 sums.
/// Communication over tp, per document and rank, in host memory:
///   temperature 0: one all-gather of 16 bytes (value and id of the rank's best);
///   else one all-gather of 16 bytes and the first 256 (or top_k) candidates of 8 bytes; documents that need more, as
///   flat distributions do, take part in a second one of 4,096 and a third of all candidates;
///   log_probs: one more of 16 bytes.
/// No rank gets all logits unless the third is needed. On a GPU the candidates are found there; the host waits.
/// Throws Error(kNonFinite) naming the prompt on all ranks for logits that are not finite.
[[nodiscard]] std::vector<NextToken> choose_tokens(const Context& context, const Stream& host, MatrixView<float> logits,
                                                   const VocabPartition& vocab, const SamplingRule& rule,
                                                   std::span<const DrawPlace> places, bool log_probs);

}  // namespace reprise
