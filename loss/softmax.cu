#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "core/dtype.hpp"
#include "loss/softmax.cuh"
#include "loss/softmax.hpp"

// All of these wait for memory: statistics read 4 bytes a logit, gradients read 4 and write 4 or 2. One block a token;
// neighbours of a warp read neighbours of a row.

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr int kSummaryThreads = 1024;
constexpr int kPack = 4;  // logits of a load

__device__ std::int64_t gold_column(std::int64_t gold, std::int64_t first_id, std::int64_t ids) {
  const std::int64_t column = gold - first_id;
  return gold >= 0 && 0 <= column && column < ids ? column : -1;
}

bool has_aligned_rows(const void* data, std::int64_t cols, std::int64_t pack, std::size_t element) {
  return reinterpret_cast<std::uintptr_t>(data) % (static_cast<std::size_t>(pack) * element) == 0 && cols % pack == 0;
}

__global__ void __launch_bounds__(kThreads) cap_logits_kernel(VectorView<float> logits, float softcap) {
  const float inverse = 1.0f / softcap;
  for (std::int64_t i = global_thread_index(); i < logits.size; i += global_thread_count()) {
    logits[i] = softcap * tanhf(logits[i] * inverse);
  }
}

__global__ void __launch_bounds__(kThreads) clear_statistics_kernel(VectorView<TokenStatistics> statistics) {
  const std::int64_t t = global_thread_index();
  if (t < statistics.size) statistics[t] = {-INFINITY, 0.0f, 0.0f};
}

__global__ void __launch_bounds__(kThreads)
    add_statistics_kernel(MatrixView<const float> logits, VectorView<const std::int32_t> gold, std::int64_t first_id,
                          VectorView<TokenStatistics> statistics, bool is_aligned) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kThreads / kWarpSize);
  const std::int64_t token = blockIdx.x;
  const float* const row = logits.row(token).data;
  RunningSoftmax part;
  if (is_aligned) {
    for (std::int64_t i = std::int64_t{threadIdx.x} * kPack; i < logits.cols; i += kThreads * kPack) {
      part.add(load_pack<kPack>(row, i));
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < logits.cols; i += kThreads) part.add(row[i]);
  }
  part = block_softmax<kThreads>(part, scratch);
  if (threadIdx.x != 0) return;
  TokenStatistics merged = statistics[token];
  merge_part(merged, part);
  const std::int64_t column = gold_column(gold[token], first_id, logits.cols);
  if (column >= 0) merged.gold_logit = row[column];
  statistics[token] = merged;
}

/// Float deltas lie in the logits' place.
template <class D, int kStep>
__global__ void __launch_bounds__(kThreads)
    softmax_gradient_kernel(MatrixView<float> logits, SoftmaxTargets targets, std::int64_t first_id, LogitRule rule,
                            MatrixView<D> deltas) {
  const std::int64_t token = blockIdx.x;
  const float* const row = logits.row(token).data;
  D* const to = deltas.row(token).data;
  const SoftmaxSlope slope(targets.max[token], targets.inverse_sum[token], targets.weight[token], rule);
  const std::int64_t gold = gold_column(targets.gold[token], first_id, logits.cols);
  const bool is_empty = targets.weight[token] == 0.0f;
  for (std::int64_t i = std::int64_t{threadIdx.x} * kStep; i < logits.cols; i += kThreads * kStep) {
    Pack<D, kStep> values;
    if (is_empty) {
      for (int j = 0; j < kStep; ++j) values[j] = D{};
    } else {
      constexpr int kLoad = kStep < kPack ? kStep : kPack;
      for (int first = 0; first < kStep; first += kLoad) {
        const auto z = load_pack<kLoad>(row, i + first);
        for (int j = 0; j < kLoad; ++j) {
          values[first + j] = from_float<D>(slope.delta(z[j], i + first + j == gold ? 1.0f : 0.0f));
        }
      }
    }
    store_pack(to, i, values);
  }
}

__global__ void __launch_bounds__(kThreads)
    combine_ranks_kernel(MatrixView<const TokenStatistics> all, VectorView<const std::int32_t> owner,
                         VectorView<float> max, VectorView<float> inverse_sum, VectorView<float> token_loss) {
  const std::int64_t t = global_thread_index();
  if (t >= all.cols) return;
  double top = -static_cast<double>(INFINITY), sum = 0.0;
  for (std::int64_t r = 0; r < all.rows; ++r) {
    const TokenStatistics part = all(r, t);
    if (part.sum_exp != 0.0f && static_cast<double>(part.max) > top) top = static_cast<double>(part.max);
  }
  for (std::int64_t r = 0; r < all.rows; ++r) {
    const TokenStatistics part = all(r, t);
    if (part.sum_exp != 0.0f) sum += static_cast<double>(part.sum_exp) * exp(static_cast<double>(part.max) - top);
  }
  max[t] = static_cast<float>(top);
  inverse_sum[t] = static_cast<float>(1.0 / sum);
  const std::int32_t rank = owner[t];
  token_loss[t] = rank < 0 ? 0.0f : static_cast<float>(top - static_cast<double>(all(rank, t).gold_logit) + log(sum));
}

/// One block.
__global__ void __launch_bounds__(kSummaryThreads)
    summarize_tokens_kernel(VectorView<const float> token_loss, VectorView<const float> weight,
                            VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary) {
  SharedMemory shared;
  auto* const scratch = shared.take<double>(kSummaryThreads / kWarpSize);
  auto* const first_bad = shared.take<std::int32_t>(1);
  const auto tokens = static_cast<std::int32_t>(token_loss.size);
  if (threadIdx.x == 0) *first_bad = tokens;
  __syncthreads();
  double sum = 0.0;
  for (auto t = static_cast<std::int32_t>(threadIdx.x); t < tokens; t += kSummaryThreads) {
    if (weight[t] != 0.0f) sum += static_cast<double>(weight[t]) * static_cast<double>(token_loss[t]);
    if (is_bad[t] != 0) atomicMin(first_bad, t);  // of integers: the order does not matter
  }
  sum = block_sum<kSummaryThreads>(sum, scratch);
  if (threadIdx.x != 0) return;
  const bool is_bad_one = *first_bad != tokens;
  summary[0] = {is_bad_one ? NAN : sum, is_bad_one ? *first_bad : -1};
}

}  // namespace

void cap_logits(const CudaStream& stream, MatrixView<float> logits, float softcap) {
  if (softcap == 0.0f) return;
  constexpr std::int64_t kPerBlock = std::int64_t{kThreads} * 8;
  launch(stream, {"cap_logits", blocks_for(logits.size(), kPerBlock), kThreads}, cap_logits_kernel, logits.flat(),
         softcap);
}

void clear_statistics(const CudaStream& stream, VectorView<TokenStatistics> statistics) {
  launch(stream, {"clear_statistics", blocks_for(statistics.size, kThreads), kThreads}, clear_statistics_kernel,
         statistics);
}

void add_statistics(const CudaStream& stream, MatrixView<const float> logits, VectorView<const std::int32_t> gold,
                    std::int64_t first_id, VectorView<TokenStatistics> statistics) {
  REPRISE_CUDA_CHECK(gold.size == logits.rows && statistics.size == logits.rows, "add_statistics: ", gold.size,
                     " golds and ", statistics.size, " statistics of ", logits.rows, " tokens");
  if (logits.cols == 0) return;
  launch(stream, {"add_statistics", blocks_for(logits.rows, 1), kThreads, kBlockReduceBytes<float, kThreads>},
         add_statistics_kernel, logits, gold, first_id, statistics,
         has_aligned_rows(logits.data, logits.cols, kPack, sizeof(float)));
}

template <class D>
void softmax_gradient(const CudaStream& stream, MatrixView<float> logits, const SoftmaxTargets& targets,
                      std::int64_t first_id, const LogitRule& rule, MatrixView<D> deltas) {
  REPRISE_CUDA_CHECK(deltas.rows == logits.rows && deltas.cols == logits.cols && targets.gold.size == logits.rows,
                     "softmax_gradient: deltas [", deltas.rows, ", ", deltas.cols, "] for ", targets.gold.size,
                     " golds and logits [", logits.rows, ", ", logits.cols, "]");
  constexpr int kStep = kPackSize<D>;
  const LaunchShape shape{"softmax_gradient", logits.cols == 0 ? 0 : blocks_for(logits.rows, 1), kThreads};
  const bool is_aligned = has_aligned_rows(logits.data, logits.cols, kStep, sizeof(float)) &&
                          has_aligned_rows(deltas.data, logits.cols, kStep, sizeof(D));
  const auto kernel = is_aligned ? softmax_gradient_kernel<D, kStep> : softmax_gradient_kernel<D, 1>;
  launch(stream, shape, kernel, logits, targets, first_id, rule, deltas);
}
template void softmax_gradient(const CudaStream&, MatrixView<float>, const SoftmaxTargets&, std::int64_t,
                               const LogitRule&, MatrixView<float>);
template void softmax_gradient(const CudaStream&, MatrixView<float>, const SoftmaxTargets&, std::int64_t,
                               const LogitRule&, MatrixView<BFloat16>);

void combine_ranks(const CudaStream& stream, MatrixView<const TokenStatistics> all,
                   VectorView<const std::int32_t> owner, VectorView<float> max, VectorView<float> inverse_sum,
                   VectorView<float> token_loss) {
  launch(stream, {"combine_ranks", blocks_for(all.cols, kThreads), kThreads}, combine_ranks_kernel, all, owner, max,
         inverse_sum, token_loss);
}

void summarize_tokens(const CudaStream& stream, VectorView<const float> token_loss, VectorView<const float> weight,
                      VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary) {
  const std::size_t bytes = kBlockReduceBytes<double, kSummaryThreads> + shared_bytes<std::int32_t>(1);
  launch(stream, {"summarize_tokens", 1, kSummaryThreads, bytes}, summarize_tokens_kernel, token_loss, weight, is_bad,
         summary);
}

}  // namespace reprise
