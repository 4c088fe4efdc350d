#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "core/arena.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"
#include "loss/softmax.hpp"

namespace reprise {

/// A logit as an integer that is smaller the larger the logit is; -0 equals +0.
[[nodiscard]] constexpr std::uint32_t rank_key(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);  // -0 becomes +0
  return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}

/// A logit and its id in one integer: ascending integers are values descending, then ids ascending; -0 equals +0.
using Candidate = std::uint64_t;

[[nodiscard]] constexpr Candidate make_candidate(float value, std::uint32_t id) {
  return (static_cast<Candidate>(rank_key(value)) << 32) | id;
}
[[nodiscard]] constexpr float value_of(Candidate candidate) {
  const auto key = static_cast<std::uint32_t>(candidate >> 32);
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key : ~key & 0x7fffffffu);
}
[[nodiscard]] constexpr std::uint32_t id_of(Candidate candidate) {
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
/// shard's maximum is, on every device: shards then add up to nearly the same sum however the vocabulary is cut.
[[nodiscard]] std::int32_t reference_exponent(float max);

/// The most candidates of a row that the CUDA kernel finds (it sorts them in shared memory).
inline constexpr std::int64_t kMostCudaCandidates = 4096;

/// logits [T, n]: the products of the ids [first_id, first_id + n), which `rule` makes logits; overwritten. Per token
/// its statistics and its min(k, n) first candidates: in ascending order on a GPU, in no particular order on a CPU.
/// gold [T] are global ids.
///
/// As k blocks of a row have a maximum of at least the k-th largest of all maxima, so have k elements: a bound.
/// CPU: a first pass over the row leaves the maxima of blocks of up to 64 elements; a second one, from the cache, adds
/// up the exponentials and keeps the few values that reach the bound.
void local_top_k(const CpuStream& stream, Arena& arena, MatrixView<float> logits, const LogitRule& rule,
                 std::int64_t first_id, std::int64_t k, VectorView<const std::int32_t> gold,
                 VectorView<ShardStatistics> statistics, MatrixView<Candidate> candidates);
/// CUDA: one pass leaves the maxima and, because sums of exponentials can be moved to another power of two without
/// rounding, the sums as well; then only the blocks that reach the bound are read again. k at most
/// kMostCudaCandidates. Scratch from the arena; the host does not wait.
void local_top_k(const CudaStream& stream, Arena& arena, MatrixView<float> logits, const LogitRule& rule,
                 std::int64_t first_id, std::int64_t k, VectorView<const std::int32_t> gold,
                 VectorView<ShardStatistics> statistics, MatrixView<Candidate> candidates);
inline void local_top_k(const Stream& stream, Arena& arena, MatrixView<float> logits, const LogitRule& rule,
                        std::int64_t first_id, std::int64_t k, VectorView<const std::int32_t> gold,
                        VectorView<ShardStatistics> statistics, MatrixView<Candidate> candidates) {
  stream.visit(
      [&](const auto& device) { local_top_k(device, arena, logits, rule, first_id, k, gold, statistics, candidates); });
}

/// terms[i] = the float32 term that `value_of(candidates[i])` has in ShardStatistics::sum_exp, relative to 2^reference.
void sum_exp_terms(std::span<const Candidate> candidates, std::int32_t reference, std::span<float> terms);

}  // namespace reprise
