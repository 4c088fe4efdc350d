#include "loss/negative_logits.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "loss/restricted_head_simd.hpp"
#include "loss/softmax_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;

void set_members(const NegativeSets& sets, const NegativeTile& tile, VectorView<float> row, float value) {
  for (std::int64_t i = tile.member_begin; i < tile.member_end; ++i) row[sets.members[i]] = value;
}

void add_token(const NegativeSets& sets, const NegativeTile& tile, const LogitRule& rule, VectorView<float> logits,
               TokenStatistics& local, VectorView<float> accumulator, VectorView<float> factors) {
  if (sets.num_kept(tile) == 0) {
    std::fill(factors.begin(), factors.end(), 0.0f);
    return;
  }
  set_members(sets, tile, logits, -std::numeric_limits<float>::infinity());
  float max = 0.0f, sum_exp = 0.0f;
  REPRISE_SIMD_CALL(softmax_statistics, logits.data, sets.num_ids, &max, &sum_exp);
  const float old_max = local.max;
  const bool had_candidates = local.sum_exp != 0.0f;
  merge_statistics(local, max + tile.raise, sum_exp);
  REPRISE_SIMD_CALL(finish_d_hidden, accumulator.data, accumulator.size,
                    had_candidates ? std::exp(old_max - local.max) : 0.0f, static_cast<const float*>(nullptr), 0.0f);
  std::copy_n(logits.begin(), sets.num_ids, factors.begin());
  REPRISE_SIMD_CALL(softmax_gradient, factors.data, sets.num_ids, -1, local.max - tile.raise, 1.0f, 1.0f, rule.scale,
                    rule.softcap);
  set_members(sets, tile, factors, 0.0f);
  std::fill(factors.begin() + sets.num_ids, factors.end(), 0.0f);
}

}  // namespace

template <class F>
void add_negatives(const CpuStream& stream, const NegativeSets& sets, const LogitRule& rule, MatrixView<float> logits,
                   VectorView<TokenStatistics> local, MatrixView<float> accumulator, MatrixView<F> factors) {
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> rounded(std::is_same_v<F, float> ? 0 : static_cast<std::size_t>(factors.cols));
    for (std::int64_t t = begin; t < end; ++t) {
      const NegativeTile& tile = sets.tiles[sets.tile_of[t]];
      if constexpr (std::is_same_v<F, float>) {
        add_token(sets, tile, rule, logits.row(t), local[t], accumulator.row(t), factors.row(t));
      } else {
        add_token(sets, tile, rule, logits.row(t), local[t], accumulator.row(t), rounded);
        cast<F, float>(CpuStream{}, rounded, factors.row(t));
      }
    }
  });
}
template void add_negatives(const CpuStream&, const NegativeSets&, const LogitRule&, MatrixView<float>,
                            VectorView<TokenStatistics>, MatrixView<float>, MatrixView<float>);
template void add_negatives(const CpuStream&, const NegativeSets&, const LogitRule&, MatrixView<float>,
                            VectorView<TokenStatistics>, MatrixView<float>, MatrixView<BFloat16>);

template <class F>
void negative_gradient(const CpuStream& stream, const NegativeSets& sets, const LogitRule& rule,
                       const SoftmaxTargets& targets, MatrixView<float> logits, MatrixView<F> deltas) {
  if constexpr (std::is_same_v<F, float>) REPRISE_CHECK(deltas.data == logits.data, "deltas lie beside the logits");
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const NegativeTile& tile = sets.tiles[sets.tile_of[t]];
      const VectorView<float> row = logits.row(t);
      if (targets.weight[t] == 0.0f || sets.num_kept(tile) == 0) {
        std::fill(row.begin(), row.end(), 0.0f);
      } else {
        REPRISE_SIMD_CALL(softmax_gradient, row.data, sets.num_ids, -1, targets.max[t] - tile.raise,
                          targets.inverse_sum[t], targets.weight[t], rule.scale, rule.softcap);
        set_members(sets, tile, row, 0.0f);
        std::fill(row.begin() + sets.num_ids, row.end(), 0.0f);
      }
      if constexpr (!std::is_same_v<F, float>) cast<F, float>(CpuStream{}, row, deltas.row(t));
    }
  });
}
template void negative_gradient(const CpuStream&, const NegativeSets&, const LogitRule&, const SoftmaxTargets&,
                                MatrixView<float>, MatrixView<float>);
template void negative_gradient(const CpuStream&, const NegativeSets&, const LogitRule&, const SoftmaxTargets&,
                                MatrixView<float>, MatrixView<BFloat16>);

}  // namespace reprise
