#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

/// A logit and its id in one integer: ascending integers are values descending, then ids ascending; -0 equals +0.
using Candidate = std::uint64_t;

[[nodiscard]] inline Candidate make_candidate(float value, std::uint32_t id) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);  // -0 becomes +0
  const std::uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<Candidate>(~ascending) << 32) | id;
}
[[nodiscard]] inline float value_of(Candidate candidate) {
  const std::uint32_t ascending = ~static_cast<std::uint32_t>(candidate >> 32);
  return std::bit_cast<float>((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu : ~ascending);
}
[[nodiscard]] inline std::uint32_t id_of(Candidate candidate) {
  return static_cast<std::uint32_t>(candidate);
}

/// What one vocabulary shard knows of a token's softmax.
struct ShardStatistics {
  double sum_exp;    ///< sum of e^z / 2^reference_exponent(max), in float64
  float max;         ///< -inf for an empty shard; NaN when a logit is not finite, or beyond kMaxLogit
  float gold_logit;  ///< where the shard holds gold, else 0
};
static_assert(sizeof(ShardStatistics) == 16);

/// Beyond it float32 logits are half a unit apart and the exponential's reduction would lose its integer part.
inline constexpr float kMaxLogit = 2.0e6f;

/// Sums of exponentials are kept relative to a power of two, so that the term of a logit has the same bits whatever the
/// shard's maximum is: shards then add up to nearly the same sum however the vocabulary is cut.
[[nodiscard]] std::int32_t reference_exponent(float max);

/// logits [T, n] of the ids [first_id, first_id + n): per token its statistics and its min(k, n) first candidates, in
/// no particular order. gold [T] are global ids.
/// A first pass over the row leaves the maxima of blocks of up to 64 elements; as k blocks have a maximum of at least
/// the k-th largest of these, so have k elements: a bound. A second pass, from the cache, adds up the exponentials and
/// keeps the few values that reach the bound.
void local_top_k(const CpuStream& stream, MatrixView<const float> logits, std::int64_t first_id, std::int64_t k,
                 VectorView<const std::int32_t> gold, VectorView<ShardStatistics> statistics,
                 MatrixView<Candidate> candidates);

/// logits = softcap tanh(scale logits / softcap), or scale logits where softcap = 0.
void transform_logits(const CpuStream& stream, float scale, float softcap, MatrixView<float> logits);

/// terms[i] = the float32 term that `value_of(candidates[i])` has in ShardStatistics::sum_exp, relative to 2^reference.
void sum_exp_terms(std::span<const Candidate> candidates, std::int32_t reference, std::span<float> terms);

}  // namespace reprise
