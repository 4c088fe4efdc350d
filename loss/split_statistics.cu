#include "core/cuda/launch.hpp"
#include "core/cuda/reduce.cuh"
#include "loss/softmax.cuh"
#include "loss/split_statistics.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kChunk = 8192;  // logits whose sides are marked in shared memory at a time

/// First place in ids[begin, end) whose id is not below `id`.
__device__ std::int64_t first_not_below(VectorView<const std::int32_t> ids, std::int64_t begin, std::int64_t end,
                                        std::int64_t id) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (ids[middle] < id) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// One block a token.
__global__ void __launch_bounds__(kThreads)
    add_split_statistics_kernel(TokenSets sets, std::int64_t first_id, MatrixView<const float> logits,
                                VectorView<SplitStatistics> statistics) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kThreads / kWarpSize);
  auto* const is_listed = shared.take<std::uint8_t>(kChunk);
  const std::int64_t token = blockIdx.x;
  const std::int64_t set_begin = sets.begin[token], set_end = sets.end[token];
  const float* const row = logits.row(token).data;
  RunningSoftmax inside, outside;
  for (std::int64_t chunk = 0; chunk < logits.cols; chunk += kChunk) {
    const std::int64_t size = logits.cols - chunk < kChunk ? logits.cols - chunk : kChunk;
    for (std::int64_t i = threadIdx.x; i < size; i += kThreads) is_listed[i] = 0;
    __syncthreads();
    const std::int64_t id = first_id + chunk;
    const std::int64_t begin = first_not_below(sets.ids, set_begin, set_end, id);
    const std::int64_t end = first_not_below(sets.ids, begin, set_end, id + size);
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) is_listed[sets.ids[i] - id] = 1;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < size; i += kThreads) {
      (is_listed[i] != 0 ? inside : outside).add(row[chunk + i]);
    }
    __syncthreads();
  }
  inside = block_softmax<kThreads>(inside, scratch);
  outside = block_softmax<kThreads>(outside, scratch);
  if (threadIdx.x != 0) return;
  SplitStatistics merged = statistics[token];
  merge_part(merged.inside, inside);
  merge_part(merged.outside, outside);
  statistics[token] = merged;
}

}  // namespace

void add_split_statistics(const CudaStream& stream, const TokenSets& sets, std::int64_t first_id,
                          MatrixView<float> logits, VectorView<SplitStatistics> statistics) {
  REPRISE_CUDA_CHECK(sets.begin.size == logits.rows && statistics.size == logits.rows,
                     "add_split_statistics: ", sets.begin.size, " sets and ", statistics.size, " statistics of ",
                     logits.rows, " tokens");
  const std::size_t bytes = kBlockReduceBytes<float, kThreads> + shared_bytes<std::uint8_t>(kChunk);
  launch(stream, {"add_split_statistics", blocks_for(logits.rows, 1), kThreads, bytes}, add_split_statistics_kernel,
         sets, first_id, logits, statistics);
}

}  // namespace reprise
