#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace reprise {

/// Half-open range.
struct Range {
  std::int64_t begin = 0, end = 0;
  [[nodiscard]] constexpr std::int64_t size() const { return end - begin; }
  friend constexpr bool operator==(const Range&, const Range&) = default;
};

/// Part `index` of `count` of [0, total): the first total % count parts are one longer. Parts may be empty.
[[nodiscard]] constexpr Range even_shard(std::int64_t total, std::int64_t count, std::int64_t index) {
  const std::int64_t base = total / count, extra = total % count;
  const std::int64_t begin = index * base + std::min(index, extra);
  return {begin, begin + base + (index < extra ? 1 : 0)};
}

[[nodiscard]] constexpr Range intersect(Range a, Range b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

/// How the vocabulary rows lie on the tensor-parallel ranks: rank r owns [bounds[r], bounds[r+1]). Uneven and empty
/// parts are allowed; rows >= vocab_size are padding: never in a softmax, never collected.
struct VocabPartition {
  std::vector<std::int64_t> bounds;  ///< tp_size + 1 ascending values from 0 to the number of rows of the matrix
  std::int64_t vocab_size = 0;       ///< real V

  [[nodiscard]] static VocabPartition even(std::int64_t rows, std::int64_t vocab_size, int tp_size) {
    VocabPartition partition{{0}, vocab_size};
    for (int r = 0; r < tp_size; ++r) partition.bounds.push_back(even_shard(rows, tp_size, r).end);
    return partition;
  }
  [[nodiscard]] int tp_size() const { return static_cast<int>(bounds.size()) - 1; }
  /// Rows held by a rank, padding included.
  [[nodiscard]] Range rows(int rank) const {
    return {bounds[static_cast<std::size_t>(rank)], bounds[static_cast<std::size_t>(rank) + 1]};
  }
  /// Real vocabulary ids held by a rank.
  [[nodiscard]] Range ids(int rank) const { return intersect(rows(rank), {0, vocab_size}); }
};

}  // namespace reprise
