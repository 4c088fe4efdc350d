#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"

namespace reprise {

// Kernels over dense blocks of logits and over the statistics of tokens. Everything lies on the stream's device.

/// What one rank knows of a token's softmax: over its candidates, max and sum of exp(z - max), and gold's logit where
/// it owns gold. A rank without candidates of the token holds (-inf, 0, 0).
struct TokenStatistics {
  float max;
  float sum_exp;
  float gold_logit;
};

/// Adds the part (max, sum_exp) of a token's candidates to `to`. NaN stays NaN. On the host.
void merge_statistics(TokenStatistics& to, float max, float sum_exp);

/// How a dot product x becomes a logit: z = softcap tanh(scale x / softcap), or scale x for softcap = 0.
struct LogitRule {
  float scale = 1.0f;
  float softcap = 0.0f;
};

/// What the gradient of a token's softmax needs, [T] each.
struct SoftmaxTargets {
  VectorView<const std::int32_t> gold;  ///< global id, or -100: none
  VectorView<const float> max;          ///< over all candidates
  VectorView<const float> inverse_sum;  ///< 1 / sum of exp(z - max)
  VectorView<const float> weight;       ///< w_t, 0 for ignored tokens

  [[nodiscard]] SoftmaxTargets slice(std::int64_t begin, std::int64_t count) const {
    return {gold.slice(begin, count), max.slice(begin, count), inverse_sum.slice(begin, count),
            weight.slice(begin, count)};
  }
};

/// Where `softcap` > 0: z = softcap tanh(z / softcap), in place.
void cap_logits(const CpuStream& stream, MatrixView<float> logits, float softcap);
void cap_logits(const CudaStream& stream, MatrixView<float> logits, float softcap);
inline void cap_logits(const Stream& stream, MatrixView<float> logits, float softcap) {
  stream.visit([&](const auto& device) { cap_logits(device, logits, softcap); });
}

/// Adds the logits [T, ids from first_id on] to the tokens' statistics [T] and sets gold's logit where it is among
/// them. NaN anywhere makes a token's sum NaN.
void add_statistics(const CpuStream& stream, MatrixView<const float> logits, VectorView<const std::int32_t> gold,
                    std::int64_t first_id, VectorView<TokenStatistics> statistics);
void add_statistics(const CudaStream& stream, MatrixView<const float> logits, VectorView<const std::int32_t> gold,
                    std::int64_t first_id, VectorView<TokenStatistics> statistics);
inline void add_statistics(const Stream& stream, MatrixView<const float> logits, VectorView<const std::int32_t> gold,
                           std::int64_t first_id, VectorView<TokenStatistics> statistics) {
  stream.visit([&](const auto& device) { add_statistics(device, logits, gold, first_id, statistics); });
}

/// statistics[t] = (-inf, 0, 0)
void clear_statistics(const CpuStream& stream, VectorView<TokenStatistics> statistics);
void clear_statistics(const CudaStream& stream, VectorView<TokenStatistics> statistics);
inline void clear_statistics(const Stream& stream, VectorView<TokenStatistics> statistics) {
  stream.visit([&](const auto& device) { clear_statistics(device, statistics); });
}

/// deltas [T, ids] = weight (exp(z - max) inverse_sum - [id = gold]) dz/dx, rounded once to D; 0 where weight is 0,
/// whatever z holds. Consumes the logits: float deltas lie in their place. D: float, BFloat16.
template <class D>
void softmax_gradient(const CpuStream& stream, MatrixView<float> logits, const SoftmaxTargets& targets,
                      std::int64_t first_id, const LogitRule& rule, MatrixView<D> deltas);
template <class D>
void softmax_gradient(const CudaStream& stream, MatrixView<float> logits, const SoftmaxTargets& targets,
                      std::int64_t first_id, const LogitRule& rule, MatrixView<D> deltas);
template <class D>
void softmax_gradient(const Stream& stream, MatrixView<float> logits, const SoftmaxTargets& targets,
                      std::int64_t first_id, const LogitRule& rule, MatrixView<D> deltas) {
  stream.visit([&](const auto& device) { softmax_gradient<D>(device, logits, targets, first_id, rule, deltas); });
}

/// all: [ranks, T] every rank's statistics, owner: [T] the rank that holds gold, or -1 for ignored tokens. In float64
/// and in rank order: max, inverse_sum [T] over all ranks, and token_loss [T] = log sum exp - gold logit, 0 for
/// ignored tokens.
void combine_ranks(const CpuStream& stream, MatrixView<const TokenStatistics> all, VectorView<const std::int32_t> owner,
                   VectorView<float> max, VectorView<float> inverse_sum, VectorView<float> token_loss);
void combine_ranks(const CudaStream& stream, MatrixView<const TokenStatistics> all,
                   VectorView<const std::int32_t> owner, VectorView<float> max, VectorView<float> inverse_sum,
                   VectorView<float> token_loss);
inline void combine_ranks(const Stream& stream, MatrixView<const TokenStatistics> all,
                          VectorView<const std::int32_t> owner, VectorView<float> max, VectorView<float> inverse_sum,
                          VectorView<float> token_loss) {
  stream.visit([&](const auto& device) { combine_ranks(device, all, owner, max, inverse_sum, token_loss); });
}

/// What the host wants to know of a micro-batch.
struct LossSummary {
  double weighted_sum = 0.0;   ///< sum of w_t l_t over tokens with w_t != 0, in a fixed order; NaN with a bad token
  std::int64_t bad_token = 0;  ///< the first with is_bad, or -1
};

/// summary [1], from [T] each.
void summarize_tokens(const CpuStream& stream, VectorView<const float> token_loss, VectorView<const float> weight,
                      VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary);
void summarize_tokens(const CudaStream& stream, VectorView<const float> token_loss, VectorView<const float> weight,
                      VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary);
inline void summarize_tokens(const Stream& stream, VectorView<const float> token_loss, VectorView<const float> weight,
                             VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary) {
  stream.visit([&](const auto& device) { summarize_tokens(device, token_loss, weight, is_bad, summary); });
}

}  // namespace reprise
