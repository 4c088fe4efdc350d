#include "loss/token_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace reprise {

namespace {

int owner_of(const VocabPartition& vocab, std::int64_t id) {
  const auto above = std::upper_bound(vocab.bounds.begin(), vocab.bounds.end(), id);
  return static_cast<int>(above - vocab.bounds.begin()) - 1;
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

CombinedStatistics combine_statistics(const Context& context, const VocabPartition& vocab, const LossBatch& batch,
                                      VectorView<const TokenStatistics> local, VectorView<float> token_loss) {
  static_assert(sizeof(TokenStatistics) == 3 * sizeof(float));
  const std::int64_t tokens = local.size;
  const int ranks = context.groups.tp_size();
  CombinedStatistics combined{context.arena.vector<float>(tokens, "softmax maxima"),
                              context.arena.vector<float>(tokens, "softmax sums")};
  const Arena::Scope scope(context.arena);
  const auto gathered = context.arena.vector<float>(3 * tokens * ranks, "softmax statistics of all ranks");
  const VectorView<const float> own(reinterpret_cast<const float*>(local.data), 3 * tokens);
  context.groups.tp->all_gather<float>(context.stream, own, gathered);
  const auto* all = reinterpret_cast<const TokenStatistics*>(gathered.data);

  for (std::int64_t t = 0; t < tokens; ++t) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (int r = 0; r < ranks; ++r) {
      if (all[r * tokens + t].sum_exp != 0.0f) max = std::max(max, static_cast<double>(all[r * tokens + t].max));
    }
    for (int r = 0; r < ranks; ++r) {
      const TokenStatistics& part = all[r * tokens + t];
      if (part.sum_exp != 0.0f)
        sum += static_cast<double>(part.sum_exp) * std::exp(static_cast<double>(part.max) - max);
    }
    combined.max[t] = static_cast<float>(max);
    combined.inverse_sum[t] = static_cast<float>(1.0 / sum);
    if (batch.gold[t] == kIgnoredGold) {
      token_loss[t] = 0.0f;
    } else {
      const float gold_logit = all[owner_of(vocab, batch.gold[t]) * tokens + t].gold_logit;
      token_loss[t] = static_cast<float>(max - static_cast<double>(gold_logit) + std::log(sum));
    }
  }
  return combined;
}

}  // namespace reprise
