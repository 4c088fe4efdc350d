#include "loss/softmax.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "loss/softmax_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;

/// Column of gold among ids from `first_id` on, or -1.
std::int64_t gold_column(std::int64_t gold, std::int64_t first_id, std::int64_t ids) {
  const std::int64_t column = gold - first_id;
  return gold >= 0 && 0 <= column && column < ids ? column : -1;
}

}  // namespace

void merge_statistics(TokenStatistics& to, float max, float sum_exp) {
  if (sum_exp == 0.0f) return;
  if (to.sum_exp == 0.0f) {
    to.max = max;
    to.sum_exp = sum_exp;
    return;
  }
  const float merged = std::max(to.max, max);
  to.sum_exp = to.sum_exp * std::exp(to.max - merged) + sum_exp * std::exp(max - merged);
  to.max = merged;
}

void cap_logits(const CpuStream& stream, MatrixView<float> logits, float softcap) {
  if (softcap == 0.0f) return;
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    const auto part = logits.row_range(begin, end - begin);
    REPRISE_SIMD_CALL(softcap_logits, part.data, part.size(), softcap);
  });
}

void clear_statistics(const CpuStream&, VectorView<TokenStatistics> statistics) {
  std::fill(statistics.begin(), statistics.end(), TokenStatistics{-std::numeric_limits<float>::infinity(), 0.0f, 0.0f});
}

void add_statistics(const CpuStream& stream, MatrixView<const float> logits, VectorView<const std::int32_t> gold,
                    std::int64_t first_id, VectorView<TokenStatistics> statistics) {
  REPRISE_CHECK(gold.size == logits.rows && statistics.size == logits.rows, "{} golds and {} statistics of {} tokens",
                gold.size, statistics.size, logits.rows);
  if (logits.cols == 0) return;
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const VectorView<const float> row = logits.row(t);
      float max = 0.0f, sum_exp = 0.0f;
      REPRISE_SIMD_CALL(softmax_statistics, row.data, row.size, &max, &sum_exp);
      merge_statistics(statistics[t], max, sum_exp);
      const std::int64_t column = gold_column(gold[t], first_id, row.size);
      if (column >= 0) statistics[t].gold_logit = row[column];
    }
  });
}

template <class D>
void softmax_gradient(const CpuStream& stream, MatrixView<float> logits, const SoftmaxTargets& targets,
                      std::int64_t first_id, const LogitRule& rule, MatrixView<D> deltas) {
  REPRISE_CHECK(deltas.rows == logits.rows && deltas.cols == logits.cols && targets.gold.size == logits.rows,
                "deltas are [{}, {}] for {} golds and logits [{}, {}]", deltas.rows, deltas.cols, targets.gold.size,
                logits.rows, logits.cols);
  if constexpr (std::is_same_v<D, float>) REPRISE_CHECK(deltas.data == logits.data, "deltas lie beside the logits");
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const VectorView<float> row = logits.row(t);
      if (targets.weight[t] == 0.0f) {
        std::fill(row.begin(), row.end(), 0.0f);
      } else {
        REPRISE_SIMD_CALL(softmax_gradient, row.data, row.size, gold_column(targets.gold[t], first_id, row.size),
                          targets.max[t], targets.inverse_sum[t], targets.weight[t], rule.scale, rule.softcap);
      }
      if constexpr (!std::is_same_v<D, float>) cast<D, float>(CpuStream{}, row, deltas.row(t));
    }
  });
}
template void softmax_gradient(const CpuStream&, MatrixView<float>, const SoftmaxTargets&, std::int64_t,
                               const LogitRule&, MatrixView<float>);
template void softmax_gradient(const CpuStream&, MatrixView<float>, const SoftmaxTargets&, std::int64_t,
                               const LogitRule&, MatrixView<BFloat16>);

void combine_ranks(const CpuStream&, MatrixView<const TokenStatistics> all, VectorView<const std::int32_t> owner,
                   VectorView<float> max, VectorView<float> inverse_sum, VectorView<float> token_loss) {
  for (std::int64_t t = 0; t < all.cols; ++t) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (std::int64_t r = 0; r < all.rows; ++r) {
      if (all(r, t).sum_exp != 0.0f) top = std::max(top, static_cast<double>(all(r, t).max));
    }
    for (std::int64_t r = 0; r < all.rows; ++r) {
      const TokenStatistics& part = all(r, t);
      if (part.sum_exp != 0.0f)
        sum += static_cast<double>(part.sum_exp) * std::exp(static_cast<double>(part.max) - top);
    }
    max[t] = static_cast<float>(top);
    inverse_sum[t] = static_cast<float>(1.0 / sum);
    const double gold_logit = owner[t] < 0 ? 0.0 : static_cast<double>(all(owner[t], t).gold_logit);
    token_loss[t] = owner[t] < 0 ? 0.0f : static_cast<float>(top - gold_logit + std::log(sum));
  }
}

void summarize_tokens(const CpuStream&, VectorView<const float> token_loss, VectorView<const float> weight,
                      VectorView<const std::int32_t> is_bad, VectorView<LossSummary> summary) {
  double sum = 0.0;
  for (std::int64_t t = 0; t < token_loss.size; ++t) {
    if (weight[t] == 0.0f) continue;  // not even a NaN of a token without weight may enter the sum
    sum += static_cast<double>(weight[t]) * static_cast<double>(token_loss[t]);
  }
  const auto* bad = std::find(is_bad.begin(), is_bad.end(), 1);
  summary[0] = {sum, -1};
  if (bad != is_bad.end()) summary[0] = {std::numeric_limits<double>::quiet_NaN(), bad - is_bad.begin()};
}

}  // namespace reprise
