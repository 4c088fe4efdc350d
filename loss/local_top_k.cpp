#include "loss/local_top_k.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void scale_and_cap(float* logits, std::int64_t size, float scale, float softcap))
REPRISE_SIMD_DECLARE(std::int64_t block_maxima(const float* row, std::int64_t size, std::int64_t block, float* maxima,
                                               float* max))
REPRISE_SIMD_DECLARE(std::int64_t count_at_least(const float* x, std::int64_t size, float bound))
REPRISE_SIMD_DECLARE(std::int64_t sum_and_filter(const float* row, std::int64_t begin, std::int64_t size,
                                                 std::int32_t reference, float bound, double* sum_exp, float* values,
                                                 std::int32_t* indices, std::int64_t capacity, std::int64_t* count))
REPRISE_SIMD_DECLARE(void scaled_exp_array(const float* x, std::int64_t size, std::int32_t reference, float* y))

namespace {

constexpr std::int64_t kMaxLanes = 16;
constexpr std::int64_t kRowGrain = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The largest power of two <= 64 that leaves 2 k blocks.
std::int64_t block_size(std::int64_t size, std::int64_t k) {
  std::int64_t block = 64;
  while (block > 1 && size / block < 2 * k) block /= 2;
  return block;
}

/// Finds the first k candidates of rows of `size` logits; the scratch of one thread.
class RowSelector {
 public:
  RowSelector(std::int64_t size, std::int64_t k)
      : k_(k),
        block_(block_size(size, k)),
        maxima_(static_cast<std::size_t>(size / block_)),
        values_(static_cast<std::size_t>(4 * k + 16 * kMaxLanes)),
        indices_(values_.size()) {}

  /// Writes min(k, size) candidates.
  ShardStatistics select(VectorView<const float> row, std::int64_t first_id, VectorView<Candidate> candidates);

 private:
  [[nodiscard]] float bound_of(std::int64_t count) const;
  void take_found(std::int64_t first_id);

  std::int64_t k_, block_;
  std::vector<float> maxima_, values_;
  std::vector<std::int32_t> indices_;
  std::int64_t found_ = 0;  // of values_ and indices_
  float bound_ = -kInfinity;
  std::vector<Candidate> best_;
};

/// A value that at least k of the row's elements reach, because k blocks have a maximum that does: the bound only has
/// to be near the k-th largest maximum. -inf with fewer than k blocks.
float RowSelector::bound_of(std::int64_t count) const {
  if (count < k_) return -kInfinity;
  const auto [least, most] = std::minmax_element(maxima_.begin(), maxima_.begin() + count);
  float low = *least, high = *most;
  constexpr int kMaxSteps = 40;
  for (int step = 0; step < kMaxSteps; ++step) {
    const float middle = 0.5f * low + 0.5f * high;
    if (!(middle > low && middle < high)) break;
    const std::int64_t reached = REPRISE_SIMD_CALL(count_at_least, maxima_.data(), count, middle);
    if (reached < k_) {
      high = middle;
      continue;
    }
    low = middle;
    if (reached <= k_ + k_ / 8) break;
  }
  return low;
}

/// Moves what was found into best_, keeps the first k, and then asks for more than the last of them: ids rise along the
/// row, so an equal value that comes later is never taken.
void RowSelector::take_found(std::int64_t first_id) {
  for (std::int64_t i = 0; i < found_; ++i) {
    const auto at = static_cast<std::size_t>(i);
    best_.push_back(make_candidate(values_[at], static_cast<std::uint32_t>(first_id + indices_[at])));
  }
  found_ = 0;
  if (static_cast<std::int64_t>(best_.size()) < k_) return;
  std::nth_element(best_.begin(), best_.begin() + (k_ - 1), best_.end());
  best_.resize(static_cast<std::size_t>(k_));
  bound_ = std::nextafter(value_of(best_.back()), kInfinity);
}

ShardStatistics RowSelector::select(VectorView<const float> row, std::int64_t first_id,
                                    VectorView<Candidate> candidates) {
  ShardStatistics statistics{0.0, -kInfinity, 0.0f};
  if (row.size == 0) return statistics;
  const std::int64_t blocks =
      REPRISE_SIMD_CALL(block_maxima, row.data, row.size, block_, maxima_.data(), &statistics.max);
  if (!(std::abs(statistics.max) <= kMaxLogit)) {
    std::fill(candidates.begin(), candidates.end(), Candidate{0});
    statistics.max = std::numeric_limits<float>::quiet_NaN();
    return statistics;
  }
  bound_ = bound_of(blocks);
  best_.clear();
  for (std::int64_t at = 0; at < row.size;) {
    at = REPRISE_SIMD_CALL(sum_and_filter, row.data, at, row.size, reference_exponent(statistics.max), bound_,
                           &statistics.sum_exp, values_.data(), indices_.data(),
                           static_cast<std::int64_t>(values_.size()), &found_);
    take_found(first_id);
  }
  REPRISE_CHECK(static_cast<std::int64_t>(best_.size()) >= candidates.size, "{} of {} candidates above the bound {}",
                best_.size(), candidates.size, bound_);
  std::copy_n(best_.begin(), candidates.size, candidates.begin());
  return statistics;
}

}  // namespace

std::int32_t reference_exponent(float max) {
  return static_cast<std::int32_t>(std::floor(static_cast<double>(max) * 1.4426950408889634));
}

void local_top_k(const CpuStream& stream, Arena&, MatrixView<float> logits, const LogitRule& rule,
                 std::int64_t first_id, std::int64_t k, VectorView<const std::int32_t> gold,
                 VectorView<ShardStatistics> statistics, MatrixView<Candidate> candidates) {
  REPRISE_CHECK(k >= 1 && gold.size == logits.rows && statistics.size == logits.rows &&
                    candidates.rows == logits.rows && candidates.cols == std::min(k, logits.cols),
                "top {} of [{}, {}] into [{}, {}]", k, logits.rows, logits.cols, candidates.rows, candidates.cols);
  const bool transforms = rule.scale != 1.0f || rule.softcap != 0.0f;
  stream.parallel_for(logits.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    RowSelector selector(logits.cols, k);
    for (std::int64_t t = begin; t < end; ++t) {
      if (transforms) REPRISE_SIMD_CALL(scale_and_cap, logits.row(t).data, logits.cols, rule.scale, rule.softcap);
      statistics[t] = selector.select(logits.row(t), first_id, candidates.row(t));
      const std::int64_t local = gold[t] - first_id;
      if (0 <= local && local < logits.cols) statistics[t].gold_logit = logits(t, local);
    }
  });
}

void sum_exp_terms(std::span<const Candidate> candidates, std::int32_t reference, std::span<float> terms) {
  std::transform(candidates.begin(), candidates.end(), terms.begin(), value_of);
  REPRISE_SIMD_CALL(scaled_exp_array, terms.data(), static_cast<std::int64_t>(terms.size()), reference, terms.data());
}

}  // namespace reprise
