#include "core/cuda/launch.hpp"
#include "loss/head_device.cuh"

namespace reprise {
namespace {

constexpr int kThreads = 256;

/// Block x: one token of merge x; thread i: the columns i, i + threads, ... Pieces in order.
__global__ void __launch_bounds__(kThreads)
    merge_head_parts_kernel(VectorView<const HeadMerge> merges, HeadResults parts, HeadResults results) {
  const HeadMerge merge = merges[blockIdx.x];
  const int token = static_cast<int>(blockIdx.y);
  if (token >= merge.tokens) return;
  const auto part_row = [&](int piece) { return std::int64_t{merge.part_begin} + piece * merge.tokens + token; };
  float max = -INFINITY;
  for (int i = 0; i < merge.pieces; ++i) max = fmaxf(max, parts.statistics[part_row(i)].max);
  const auto factor = [&](int piece) { return expf(parts.statistics[part_row(piece)].max - max); };
  for (std::int64_t column = threadIdx.x; column < results.accumulator.cols; column += kThreads) {
    float sum = 0.0f;
    for (int i = 0; i < merge.pieces; ++i) sum = fmaf(factor(i), parts.accumulator(part_row(i), column), sum);
    results.accumulator(merge.token_begin + token, column) = sum;
  }
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < merge.pieces; ++i) sum = fmaf(factor(i), parts.statistics[part_row(i)].sum_exp, sum);
    results.statistics[merge.token_begin + token] = {max, sum, 0.0f};
  }
}

}  // namespace

void merge_head_parts(const CudaStream& stream, VectorView<const HeadMerge> merges, std::int64_t most_tokens,
                      const HeadResults& parts, const HeadResults& results) {
  const dim3 grid(blocks_for(merges.size, 1), blocks_for(most_tokens, 1));
  launch(stream, {"merge_head_parts", grid, kThreads}, merge_head_parts_kernel, merges, parts, results);
}

}  // namespace reprise
