#include "loss/split_statistics.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/elementwise.hpp"
#include "loss/softmax_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 4;

void add_logits(TokenStatistics& to, VectorView<const float> logits) {
  if (logits.empty()) return;
  float max = 0.0f, sum_exp = 0.0f;
  REPRISE_SIMD_CALL(softmax_statistics, logits.data, logits.size, &max, &sum_exp);
  merge_statistics(to, max, sum_exp);
}

/// Adds the logits of the ids [first_id, first_id + logits.size).
void add_block(SplitStatistics& token, VectorView<const std::int32_t> candidates, std::int64_t first_id,
               VectorView<float> logits) {
  const auto* begin = std::lower_bound(candidates.begin(), candidates.end(), first_id);
  const auto* end = std::lower_bound(begin, candidates.end(), first_id + logits.size);
  std::vector<float> listed;
  for (const auto* id = begin; id != end; ++id) {
    listed.push_back(logits[*id - first_id]);
    logits[*id - first_id] = -std::numeric_limits<float>::infinity();
  }
  add_logits(token.inside, listed);
  if (std::ssize(listed) < logits.size) add_logits(token.outside, logits);
}

}  // namespace

void add_split_statistics(const CpuStream& stream, const TokenSets& sets, std::int64_t first_id,
                          MatrixView<float> logits, VectorView<SplitStatistics> statistics) {
  stream.parallel_for(logits.rows, kTokenGrain, [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t t = from; t < to; ++t) {
      add_block(statistics[t], sets.ids.slice(sets.begin[t], sets.end[t] - sets.begin[t]), first_id, logits.row(t));
    }
  });
}

}  // namespace reprise
