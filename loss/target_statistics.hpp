#pragma once

#include <cstdint>
#include <vector>

#include "core/view.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// What is measured of a micro-batch, in host memory, the same on every rank of a tensor-parallel group.
struct MeasuredTargets {
  VectorView<const std::int32_t> row;   ///< [T] rows of the hidden states, in any order, also repeated
  VectorView<const std::int32_t> gold;  ///< [T] in [0, V)
  std::int64_t total_rows = 0;          ///< of the micro-batch over all tp ranks
  /// Sets of which the mass outside is wanted; all empty: none are.
  VectorView<const std::int64_t> set_begin = {}, set_end = {};  ///< [T] token t's set is ids[begin, end)
  VectorView<const std::int32_t> ids = {};                      ///< sorted within a set
};

/// [T] each, the same bits on every tp rank.
struct TargetStatistics {
  std::vector<float> log_prob;       ///< log softmax(z)_gold over the whole vocabulary, nats
  std::vector<std::uint8_t> is_top;  ///< no logit is larger than gold's
  std::vector<float> outside;        ///< sum of softmax(z)_k over k outside the token's set; empty without sets
};

/// Logits are made in blocks of tokens x vocabulary rows (default_logit_budget), each of them read where the product
/// left it: no [T, V] buffer exists. One all-gather over tp, in host memory, of 24 bytes per token (72 with sets),
/// beside that of the selected rows under sequence parallelism. hidden, weight: as HeadLoss::forward takes them. Throws
/// Error(kNonFinite) for hidden states that are not finite.
template <class T>
[[nodiscard]] TargetStatistics measure_targets(const Context& context, const Stream& host, MatrixView<const T> hidden,
                                               MatrixView<const T> weight, const VocabPartition& vocab,
                                               const MeasuredTargets& targets);

}  // namespace reprise
