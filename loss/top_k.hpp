#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/view.hpp"
#include "loss/candidate_tiles.hpp"
#include "loss/loss.hpp"
#include "loss/position_policy.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

struct TopKOptions {
  double tau = 0.95;  ///< probability mass that a set covers; >= 1 means k_max ids
  std::int64_t k_max = 200;
  std::int64_t k_min = 1;
  PositionPolicy positions = PositionPolicy::kAll;
  std::int64_t budget = 0;  ///< positions per sample, 0 = no limit
  std::uint64_t seed = 1;
  bool log_probs = false;
};

/// All target positions of whole samples in one micro-batch, in host memory; the same on every tp rank.
struct CollectBatch {
  VectorView<const std::int32_t> row;           ///< [T] rows of hidden, strictly ascending
  VectorView<const std::int32_t> gold;          ///< [T]
  VectorView<const std::uint32_t> position;     ///< [T] position within the sample
  VectorView<const std::int64_t> sample_begin;  ///< [samples + 1] offsets into the T tokens
  VectorView<const std::uint64_t> sample_id;    ///< [samples]
  VectorView<const std::uint64_t> sample_hash;  ///< [samples]
  VectorView<const std::int32_t> owner;         ///< [samples] tp rank that gets the sample's records
};

/// Stage 0: the Top-K token sets of the chosen positions, across vocabulary shards.
///
/// Per token float32 logits in vocabulary blocks; one all-gather of (max, sum-exp in float64, gold logit) after which
/// every rank selects the same positions; one all-to-all of candidates by token owner. The set of a token is the fewest
/// ids, by value descending then id ascending, whose mass reaches tau (at most k_max, at least k_min); then gold is
/// inserted, replacing the last when full, and flagged. Given the same logits the sets are the same for every sharding.
/// hidden and weight lie on the stream's device. There the candidates are found and exchanged; positions and sets are
/// chosen on the host, which waits for a GPU three times: for non-finite rows, statistics and its own tokens'
/// candidates. Padded rows are never collected. Throws Error(kNonFinite) for non-finite hidden states or logits,
/// Error(kUsage) for options out of range. `host`: the threads that choose the sets from a GPU's candidates; with a CPU
/// stream its own do. Returns the records of the samples that this tp rank owns.
template <class T>
[[nodiscard]] std::vector<SampleRecords> collect_top_k(const Context& context, MatrixView<const T> hidden,
                                                       MatrixView<const T> weight, const VocabPartition& vocab,
                                                       const CollectBatch& batch, const TopKOptions& options,
                                                       const LossOptions& loss_options = {},
                                                       const CpuStream& host = {});

/// What the report of a collection says; merged over ranks by adding.
struct CollectStatistics {
  std::int64_t samples = 0, tokens = 0, ids = 0;
  std::int64_t gold_outside = 0;  ///< sets whose gold had to be forced in
  std::int64_t at_k_max = 0;
  double mass = 0.0;                   ///< sum of covered mass
  std::vector<std::int64_t> set_size;  ///< histogram: set_size[n] sets of n ids
  std::vector<std::int64_t> bucket = std::vector<std::int64_t>(kNumConfidenceBuckets);  ///< tokens by confidence
  void add(const SampleRecords& records, std::int64_t k_max);
};

}  // namespace reprise
