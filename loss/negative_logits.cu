#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "loss/negative_logits.hpp"
#include "loss/softmax.cuh"

// One block a token. Forward moves 4 n bytes of logits twice (the second time from L1 or L2), 2 or 4 n of factors, and
// 8 D of the accumulator where the maximum rises.

namespace reprise {
namespace {

constexpr int kThreads = 256;

template <class F>
__global__ void __launch_bounds__(kThreads)
    add_negatives_kernel(NegativeSets sets, LogitRule rule, MatrixView<float> logits, VectorView<TokenStatistics> local,
                         MatrixView<float> accumulator, MatrixView<F> factors) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kThreads / kWarpSize);
  const std::int64_t token = blockIdx.x;
  const NegativeTile tile = sets.tiles[sets.tile_of[token]];
  float* const z = logits.row(token).data;
  F* const to = factors.row(token).data;
  const TokenStatistics before = local[token];
  for (std::int64_t i = tile.member_begin + threadIdx.x; i < tile.member_end; i += kThreads) {
    z[sets.members[i]] = -INFINITY;
  }
  __syncthreads();  // every thread has read `before` and sees the members
  RunningSoftmax part;
  for (std::int64_t i = threadIdx.x; i < sets.num_ids; i += kThreads) part.add(z[i]);
  part = block_softmax<kThreads>(part, scratch);
  part.max += tile.raise;
  TokenStatistics merged = before;
  merge_part(merged, part);
  if (threadIdx.x == 0) local[token] = merged;

  const bool has_any = sets.num_kept(tile) != 0;
  if (has_any && merged.max != before.max) {
    const float change = before.sum_exp == 0.0f ? 0.0f : expf(before.max - merged.max);
    float* const sums = accumulator.row(token).data;
    // Without candidates of this rank the row may hold anything.
    for (std::int64_t i = threadIdx.x; i < accumulator.cols; i += kThreads) {
      sums[i] = change == 0.0f ? 0.0f : sums[i] * change;
    }
  }
  const SoftmaxSlope slope(merged.max - tile.raise, 1.0f, 1.0f, rule);
  for (std::int64_t i = threadIdx.x; i < factors.cols; i += kThreads) {
    const bool is_kept = has_any && i < sets.num_ids && z[i] != -INFINITY;
    to[i] = from_float<F>(is_kept ? slope.delta(z[i], 0.0f) : 0.0f);
  }
}

/// Float deltas lie in the logits' place.
template <class F>
__global__ void __launch_bounds__(kThreads)
    negative_gradient_kernel(NegativeSets sets, LogitRule rule, SoftmaxTargets targets, MatrixView<float> logits,
                             MatrixView<F> deltas) {
  const std::int64_t token = blockIdx.x;
  const NegativeTile tile = sets.tiles[sets.tile_of[token]];
  const float* const z = logits.row(token).data;
  F* const to = deltas.row(token).data;
  const float weight = targets.weight[token];
  const bool has_any = weight != 0.0f && sets.num_kept(tile) != 0;
  const SoftmaxSlope slope(targets.max[token] - tile.raise, targets.inverse_sum[token], weight, rule);
  for (std::int64_t i = threadIdx.x; i < deltas.cols; i += kThreads) {
    const bool is_kept = has_any && i < sets.num_ids && z[i] != -INFINITY;
    to[i] = from_float<F>(is_kept ? slope.delta(z[i], 0.0f) : 0.0f);
  }
}

}  // namespace

template <class F>
void add_negatives(const CudaStream& stream, const NegativeSets& sets, const LogitRule& rule, MatrixView<float> logits,
                   VectorView<TokenStatistics> local, MatrixView<float> accumulator, MatrixView<F> factors) {
  REPRISE_CUDA_CHECK(local.size == logits.rows && accumulator.rows == logits.rows && factors.rows == logits.rows,
                     "add_negatives: ", local.size, " statistics of ", logits.rows, " tokens");
  launch(stream, {"add_negatives", blocks_for(logits.rows, 1), kThreads, kBlockReduceBytes<float, kThreads>},
         add_negatives_kernel<F>, sets, rule, logits, local, accumulator, factors);
}
template void add_negatives(const CudaStream&, const NegativeSets&, const LogitRule&, MatrixView<float>,
                            VectorView<TokenStatistics>, MatrixView<float>, MatrixView<float>);
template void add_negatives(const CudaStream&, const NegativeSets&, const LogitRule&, MatrixView<float>,
                            VectorView<TokenStatistics>, MatrixView<float>, MatrixView<BFloat16>);

template <class F>
void negative_gradient(const CudaStream& stream, const NegativeSets& sets, const LogitRule& rule,
                       const SoftmaxTargets& targets, MatrixView<float> logits, MatrixView<F> deltas) {
  launch(stream, {"negative_gradient", blocks_for(logits.rows, 1), kThreads}, negative_gradient_kernel<F>, sets, rule,
         targets, logits, deltas);
}
template void negative_gradient(const CudaStream&, const NegativeSets&, const LogitRule&, const SoftmaxTargets&,
                                MatrixView<float>, MatrixView<float>);
template void negative_gradient(const CudaStream&, const NegativeSets&, const LogitRule&, const SoftmaxTargets&,
                                MatrixView<float>, MatrixView<BFloat16>);

}  // namespace reprise
