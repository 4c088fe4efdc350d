#include "core/cuda/launch.hpp"
#include "loss/head_device.cuh"
#include "loss/head_gradient.hpp"

namespace reprise {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kDeltasOfABlock = 8192;

__global__ void __launch_bounds__(kThreads)
    read_gold_logits_kernel(VectorView<const std::int64_t> at, VectorView<const float> logits,
                            VectorView<TokenStatistics> statistics) {
  const std::int64_t t = global_thread_index();
  if (t < at.size && at[t] >= 0) statistics[t].gold_logit = logits[at[t]];
}

/// One block per token. Reads 4 bytes an element and, where this rank has gold's row, its element; writes one of T.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_d_selected_kernel(SoftmaxTargets targets, VectorView<const TokenStatistics> local, std::int64_t first_id,
                             LogitRule rule, MatrixView<const T> weight, MatrixView<const float> accumulator,
                             MatrixView<T> d_selected, bool is_aligned) {
  constexpr int kSize = 4;
  const std::int64_t t = blockIdx.x, row = targets.gold[t] - first_id;
  const float w = targets.weight[t];
  const bool has_part = w != 0.0f && local[t].sum_exp != 0.0f;
  const bool owns_gold = w != 0.0f && 0 <= row && row < weight.rows;
  const float factor = has_part ? w * expf(local[t].max - targets.max[t]) * targets.inverse_sum[t] : 0.0f;
  const float gold_factor = owns_gold ? w * slope_of(rule, local[t].gold_logit) : 0.0f;
  const float* const from = accumulator.row(t).data;
  const T* const gold_row = weight.row(owns_gold ? row : 0).data;
  T* const to = d_selected.row(t).data;
  const auto finish = [&](float sum, float gold) {
    return from_float<T>((has_part ? factor * sum : 0.0f) - (owns_gold ? gold_factor * gold : 0.0f));
  };
  if (is_aligned) {
    for (std::int64_t i = std::int64_t{threadIdx.x} * kSize; i < accumulator.cols;
         i += std::int64_t{kThreads} * kSize) {
      Pack<float, kSize> sums{};
      Pack<T, kSize> gold{}, done;
      if (has_part) sums = load_pack<kSize>(from, i);
      if (owns_gold) gold = load_pack<kSize>(gold_row, i);
      for (int e = 0; e < kSize; ++e) done[e] = finish(sums[e], to_float(gold[e]));
      store_pack(to, i, done);
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < accumulator.cols; i += kThreads) {
      to[i] = finish(has_part ? from[i] : 0.0f, owns_gold ? to_float(gold_row[i]) : 0.0f);
    }
  }
}

/// Blocks x of a tile's logits [ids, tokens] by y.
__global__ void __launch_bounds__(kThreads)
    make_deltas_kernel(VectorView<const LocalTile> tiles, SoftmaxTargets targets,
                       VectorView<const TokenStatistics> local, VectorView<const std::int64_t> gold_at, LogitRule rule,
                       VectorView<float> logits) {
  const LocalTile tile = tiles[blockIdx.x];
  const std::int64_t tokens = tile.tokens(), size = tile.num_ids() * tokens;
  const std::int64_t stride = std::int64_t{gridDim.y} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.y} * kThreads + threadIdx.x; i < size; i += stride) {
    const std::int64_t t = tile.token_begin + (tokens == 1 ? 0 : i % tokens), at = tile.logits + i;
    const float w = targets.weight[t], z = logits[at];
    float delta = 0.0f;
    if (w != 0.0f) delta = w * (expf(z - targets.max[t]) * targets.inverse_sum[t]) * slope_of(rule, z);
    if (w != 0.0f && at == gold_at[t]) delta -= w * slope_of(rule, local[t].gold_logit);
    logits[at] = delta;
  }
}

}  // namespace

void read_gold_logits(const CudaStream& stream, const GoldLogits& gold, VectorView<const float> logits,
                      VectorView<TokenStatistics> statistics) {
  launch(stream, {"read_gold_logits", blocks_for(gold.at.size, kThreads), kThreads}, read_gold_logits_kernel, gold.at,
         logits, statistics);
}

template <class T>
void finish_d_selected(const CudaStream& stream, const SoftmaxTargets& targets, VectorView<const TokenStatistics> local,
                       const GoldLogits& gold, const LogitRule& rule, MatrixView<const T> weight,
                       MatrixView<float> accumulator, MatrixView<T> d_selected) {
  const auto is_aligned = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; };
  const bool all_aligned =
      weight.cols % 4 == 0 && is_aligned(weight.data) && is_aligned(accumulator.data) && is_aligned(d_selected.data);
  launch(stream, {"finish_d_selected", blocks_for(accumulator.rows, 1), kThreads}, finish_d_selected_kernel<T>, targets,
         local, gold.first_id, rule, weight, accumulator, d_selected, all_aligned);
}
template void finish_d_selected(const CudaStream&, const SoftmaxTargets&, VectorView<const TokenStatistics>,
                                const GoldLogits&, const LogitRule&, MatrixView<const float>, MatrixView<float>,
                                MatrixView<float>);
template void finish_d_selected(const CudaStream&, const SoftmaxTargets&, VectorView<const TokenStatistics>,
                                const GoldLogits&, const LogitRule&, MatrixView<const BFloat16>, MatrixView<float>,
                                MatrixView<BFloat16>);

void make_deltas(const CudaStream& stream, VectorView<const LocalTile> tiles, const SoftmaxTargets& targets,
                 VectorView<const TokenStatistics> local, const GoldLogits& gold, const LogitRule& rule,
                 VectorView<float> logits) {
  if (tiles.empty()) return;
  const unsigned blocks_of_a_tile = blocks_for(logits.size, kDeltasOfABlock * tiles.size);
  launch(stream, {"make_deltas", dim3(blocks_for(tiles.size, 1), blocks_of_a_tile), kThreads}, make_deltas_kernel,
         tiles, targets, local, gold.at, rule, logits);
}

}  // namespace reprise
