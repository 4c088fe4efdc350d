#include "loss/head_gradient.hpp"

#include <cmath>

#include "core/elementwise.hpp"
#include "core/elementwise_kernels.hpp"
#include "loss/restricted_head_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;

/// dz/dx at the logit z.
float slope(const LogitRule& rule, float logit) {
  const float ratio = rule.softcap > 0.0f ? logit / rule.softcap : 0.0f;
  return rule.scale * (1.0f - ratio * ratio);
}

}  // namespace

void read_gold_logits(const CpuStream& /*stream*/, const GoldLogits& gold, VectorView<const float> logits,
                      VectorView<TokenStatistics> statistics) {
  for (std::int64_t t = 0; t < gold.at.size; ++t) {
    if (gold.at[t] >= 0) statistics[t].gold_logit = logits[gold.at[t]];
  }
}

template <class T>
void finish_d_selected(const CpuStream& stream, const SoftmaxTargets& targets, VectorView<const TokenStatistics> local,
                       const GoldLogits& gold, const LogitRule& rule, MatrixView<const T> weight,
                       MatrixView<float> accumulator, MatrixView<T> d_selected) {
  stream.parallel_for(accumulator.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float w = targets.weight[t];
      const bool has_part = w != 0.0f && local[t].sum_exp != 0.0f;
      const float factor = has_part ? w * std::exp(local[t].max - targets.max[t]) * targets.inverse_sum[t] : 0.0f;
      const std::int64_t row = targets.gold[t] - gold.first_id;
      const bool owns_gold = w != 0.0f && 0 <= row && row < weight.rows;
      REPRISE_SIMD_CALL(finish_d_hidden, accumulator.row(t).data, accumulator.cols, factor,
                        owns_gold ? simd_pointer(weight.row(row).data) : nullptr, w * slope(rule, local[t].gold_logit));
    }
    if (static_cast<const void*>(d_selected.data) != accumulator.data) {
      cast<T, float>(CpuStream{}, accumulator.row_range(begin, end - begin).flat(),
                     d_selected.row_range(begin, end - begin).flat());
    }
  });
}
template void finish_d_selected(const CpuStream&, const SoftmaxTargets&, VectorView<const TokenStatistics>,
                                const GoldLogits&, const LogitRule&, MatrixView<const float>, MatrixView<float>,
                                MatrixView<float>);
template void finish_d_selected(const CpuStream&, const SoftmaxTargets&, VectorView<const TokenStatistics>,
                                const GoldLogits&, const LogitRule&, MatrixView<const BFloat16>, MatrixView<float>,
                                MatrixView<BFloat16>);

void make_deltas(const CpuStream& stream, VectorView<const LocalTile> tiles, const SoftmaxTargets& targets,
                 VectorView<const TokenStatistics> local, const GoldLogits& gold, const LogitRule& rule,
                 VectorView<float> logits) {
  stream.parallel_for(tiles.size, 1, [&](std::int64_t index, std::int64_t) {
    const LocalTile& tile = tiles[index];
    REPRISE_SIMD_CALL(head_delta, logits.data + tile.logits, tile.num_ids(), tile.tokens(),
                      targets.max.data + tile.token_begin, targets.inverse_sum.data + tile.token_begin,
                      targets.weight.data + tile.token_begin, rule.scale, rule.softcap);
    for (std::int64_t t = tile.token_begin; t < tile.token_end; ++t) {
      if (targets.weight[t] != 0.0f && gold.at[t] >= 0) {
        logits[gold.at[t]] -= targets.weight[t] * slope(rule, local[t].gold_logit);
      }
    }
  });
}

}  // namespace reprise
