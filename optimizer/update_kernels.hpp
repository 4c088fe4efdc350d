#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "core/view.hpp"
#include "optimizer/step_rule.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise {

// The optimizer's work on flat buffers: chunks of coordinates from a table, whatever tensors they belong to, so that
// one launch serves a bucket (sums) or the whole shard (update). Tables, scalars and state lie on the stream's device.

enum class UpdateRule : std::uint8_t { kMoClip, kAdamW };

/// A run of coordinates of one angle group: where it begins in each buffer and what is done with it. The beginnings are
/// multiples of 16 elements.
struct UpdateChunk {
  std::int64_t gradient = 0;
  std::int64_t state = 0;  ///< in exp_avg and exp_avg_sq
  std::int64_t master = 0;
  std::int64_t parameter = 0;
  std::int64_t size = 0;   ///< at most ShardPlan::kChunkElements
  std::int64_t slot = -1;  ///< of its sums; -1 = they are another rank's
  std::int32_t group = 0;
  bool counted = false;  ///< else a copy that another rank counts: only its soundness matters
  bool decay = false;
};

/// Flat buffers that chunks are parts of.
struct UpdateState {
  VectorView<float> gradient, exp_avg, exp_avg_sq, master;
  VectorView<BFloat16> parameter;  ///< empty for float32 storage, whose parameters are the master weights
};

/// sums[chunk.slot] = <G,m>, <G,G>, <m,m> in float64 and the count of non-finite coordinates of each chunk; dots are 0
/// for chunks that are not counted. One read of G and m; AdamW reads G alone, and its <G,m> and <m,m> are 0.
/// Every product is exact, and the order of a chunk's sum depends on its size alone.
void sum_chunks(const CpuStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                const UpdateState& state, VectorView<GroupSums> sums);
void sum_chunks(const CudaStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                const UpdateState& state, VectorView<GroupSums> sums);

/// doubles = for each group g the sum of sums[group_begin[g], group_begin[g + 1]) in a fixed order, then `step`, to
/// whose weighted_loss the `losses` are added in order. group_begin: [groups + 1]; doubles: [4 groups + 8].
void sum_groups(const CpuStream& stream, VectorView<const GroupSums> sums, VectorView<const std::int64_t> group_begin,
                const StepSums& step, VectorView<const double> losses, VectorView<double> doubles);
void sum_groups(const CudaStream& stream, VectorView<const GroupSums> sums, VectorView<const std::int64_t> group_begin,
                const StepSums& step, VectorView<const double> losses, VectorView<double> doubles);

/// What decide_step writes.
struct StepOutcome {
  VectorView<double> totals;          ///< [4 groups + 8], scratch: the sums over ranks
  VectorView<UpdateScalars> scalars;  ///< [groups]
  VectorView<Turn> turns;             ///< [groups]
  VectorView<StepDecision> decision;  ///< [1]
};
/// Adds what the ranks gathered (gathered: [ranks, 4 groups + 8]) in rank order, decides whether the step is taken and
/// with which scale, turns every group, folds its scalars.
void decide_step(const CpuStream& stream, const StepRule& rule, VectorView<const double> gathered,
                 const StepOutcome& outcome);
void decide_step(const CudaStream& stream, const StepRule& rule, VectorView<const double> gathered,
                 const StepOutcome& outcome);

/// One pass over memory: m = beta1 m + (1 - beta1) g', v = beta2 v + (1 - beta2) g'^2,
///   moclip: w -= lr atan2(m_hat, sqrt(v_hat)) + lr weight_decay w,
///   adamw:  w -= lr m_hat / (sqrt(v_hat) + eps) + lr weight_decay w,
/// G = 0, `parameter` = the rounded master weights. Scalars by group; decay only where the chunk says so.
/// Moments below the smallest normal float32 become 0, so that rows that are never touched do not end as subnormals; in
/// the angle v counts as at least that number, so atan2(0, 0) = 0. NaN propagates.
/// Where decision[0] skips the step G = 0, and all else stays bit for bit.
/// Coordinates do not depend on each other and a tail goes through the same instructions, so a coordinate's bits do not
/// depend on where chunks and shards are cut.
void update_chunks(const CpuStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                   const UpdateState& state, VectorView<const UpdateScalars> scalars,
                   VectorView<const StepDecision> decision);
void update_chunks(const CudaStream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                   const UpdateState& state, VectorView<const UpdateScalars> scalars,
                   VectorView<const StepDecision> decision);

inline void sum_chunks(const Stream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                       const UpdateState& state, VectorView<GroupSums> sums) {
  stream.visit([&](const auto& device) { sum_chunks(device, rule, chunks, state, sums); });
}
inline void sum_groups(const Stream& stream, VectorView<const GroupSums> sums,
                       VectorView<const std::int64_t> group_begin, const StepSums& step,
                       VectorView<const double> losses, VectorView<double> doubles) {
  stream.visit([&](const auto& device) { sum_groups(device, sums, group_begin, step, losses, doubles); });
}
inline void decide_step(const Stream& stream, const StepRule& rule, VectorView<const double> gathered,
                        const StepOutcome& outcome) {
  stream.visit([&](const auto& device) { decide_step(device, rule, gathered, outcome); });
}
inline void update_chunks(const Stream& stream, UpdateRule rule, VectorView<const UpdateChunk> chunks,
                          const UpdateState& state, VectorView<const UpdateScalars> scalars,
                          VectorView<const StepDecision> decision) {
  stream.visit([&](const auto& device) { update_chunks(device, rule, chunks, state, scalars, decision); });
}

}  // namespace reprise
