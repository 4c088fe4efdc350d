#include "loss/gradient_plan.hpp"

#include <algorithm>
#include <limits>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

namespace {

/// Tokens of one tile that share a unit for every row of the tile.
struct TokenGroup {
  std::int64_t tile, token, tokens;
};

class Planner {
 public:
  Planner(const Context& context, const LocalCandidates& candidates, const GradientLimits& limits,
          HostArrays& host_arrays)
      : context_(context),
        candidates_(candidates),
        limits_(limits),
        host_arrays_(host_arrays),
        count_(static_cast<std::size_t>(candidates.own.size()), 0),
        is_dense_(static_cast<std::size_t>(candidates.own.size()), 0) {
    for (const LocalTile& tile : candidates.tiles) {
      if (tile.tokens() > 1) unit_tokens_ = kRowUnitTokens;
    }
    for (std::int64_t i = 0; i < candidates.tiles.size; ++i) {
      const LocalTile& tile = candidates.tiles[i];
      for (std::int64_t t = tile.token_begin; t < tile.token_end; t += unit_tokens_) {
        groups_.push_back({i, t, std::min<std::int64_t>(unit_tokens_, tile.token_end - t)});
      }
    }
  }

  std::vector<GradientPart> plan() {
    for (std::size_t first = 0; first < groups_.size();) {
      const std::size_t last = groups_end(first, groups_.size(), limits_.segment_tokens);
      plan_segment(first, last);
      first = last;
    }
    return std::move(parts_);
  }

 private:
  /// First group behind those from `first` on that hold at most `tokens` tokens.
  [[nodiscard]] std::size_t groups_end(std::size_t first, std::size_t last, std::int64_t tokens) const {
    std::size_t end = first + 1;
    while (end < last && groups_[end].token + groups_[end].tokens - groups_[first].token <= tokens) ++end;
    return end;
  }

  template <class Body>
  void for_each_id(std::size_t first, std::size_t last, const Body& body) const {
    for (std::size_t g = first; g < last; ++g) {
      const LocalTile& tile = candidates_.tiles[groups_[g].tile];
      for (std::int64_t i = tile.id_begin; i < tile.id_end; ++i) {
        body(groups_[g], tile, i - tile.id_begin, static_cast<std::size_t>(candidates_.ids[i] - candidates_.own.begin));
      }
    }
  }

  void plan_segment(std::size_t first, std::size_t last) {
    const std::vector<std::int32_t> dense = find_dense_rows(first, last);
    for (const std::int32_t row : dense) is_dense_[static_cast<std::size_t>(row)] = 1;
    for (std::size_t begin = 0; begin < dense.size(); begin += static_cast<std::size_t>(limits_.most_dense_rows)) {
      const std::size_t end = std::min(dense.size(), begin + static_cast<std::size_t>(limits_.most_dense_rows));
      const std::span<const std::int32_t> rows(dense.data() + begin, end - begin);
      for (const std::int32_t row : rows) is_dense_[static_cast<std::size_t>(row)] = 2;
      parts_.push_back(make_part(first, last, 2));
      for (const std::int32_t row : rows) is_dense_[static_cast<std::size_t>(row)] = 1;
    }
    // Supertiles of about the same size: a short last one would update nearly as many rows.
    const std::int64_t tokens = groups_[last - 1].token + groups_[last - 1].tokens - groups_[first].token;
    const std::int64_t share = ceil_div(tokens, ceil_div(tokens, limits_.supertile_tokens));
    const std::int64_t most = std::min(limits_.supertile_tokens, round_up(share, unit_tokens_));
    for (std::size_t begin = first; begin < last;) {
      const std::size_t end = groups_end(begin, last, most);
      parts_.push_back(make_part(begin, end, 0));
      begin = end;
    }
    for (const std::int32_t row : dense) is_dense_[static_cast<std::size_t>(row)] = 0;
  }

  /// Ascending.
  [[nodiscard]] std::vector<std::int32_t> find_dense_rows(std::size_t first, std::size_t last) {
    for_each_id(first, last,
                [&](const TokenGroup&, const LocalTile&, std::int64_t, std::size_t row) { ++count_[row]; });
    std::vector<std::int32_t> rows;
    const auto groups = static_cast<std::int64_t>(last - first);
    for (std::size_t row = 0; row < count_.size(); ++row) {
      if (count_[row] * limits_.dense_divisor > groups) rows.push_back(static_cast<std::int32_t>(row));
      count_[row] = 0;
    }
    if (std::ssize(rows) < limits_.min_dense_rows) rows.clear();
    return rows;
  }

  /// Rows with is_dense == kind that the groups list.
  GradientPart make_part(std::size_t first, std::size_t last, std::uint8_t kind) {
    std::vector<std::int32_t> rows;
    std::int64_t units = 0;
    for_each_id(first, last, [&](const TokenGroup&, const LocalTile&, std::int64_t, std::size_t row) {
      if (is_dense_[row] != kind) return;
      if (count_[row]++ == 0) rows.push_back(static_cast<std::int32_t>(row));
      ++units;
    });
    const auto sorted = host_arrays_.vector<std::int32_t>(context_, std::ssize(rows), "rows with gradients");
    const auto begin = host_arrays_.vector<std::int32_t>(context_, std::ssize(rows) + 1, "units of rows");
    sort_by_falling_count(rows, last - first, sorted);
    begin[0] = 0;
    for (std::int64_t i = 0; i < sorted.size; ++i) {
      std::int32_t& count = count_[static_cast<std::size_t>(sorted[i])];
      begin[i + 1] = begin[i] + count;
      count = begin[i];  // from now on where the row's next unit goes
    }

    const std::int64_t first_token = groups_[first].token;
    const auto list = host_arrays_.vector<RowUnit>(context_, units, "tokens by row");
    for_each_id(first, last, [&](const TokenGroup& group, const LocalTile& tile, std::int64_t id, std::size_t row) {
      if (is_dense_[row] != kind) return;
      list[count_[row]++] = RowUnit::make(group.token - first_token, group.tokens,
                                          tile.logits + id * tile.tokens() + group.token - tile.token_begin);
    });
    for (const std::int32_t row : rows) count_[static_cast<std::size_t>(row)] = 0;

    const std::int64_t end_token = groups_[last - 1].token + groups_[last - 1].tokens;
    return {.token_begin = first_token,
            .tokens = end_token - first_token,
            .is_dense = kind != 0,
            .list = {HostArrays::on_device<std::int32_t>(context_, sorted, "rows with gradients"),
                     HostArrays::on_device<std::int32_t>(context_, begin, "units of rows"),
                     HostArrays::on_device<RowUnit>(context_, list, "tokens by row"), unit_tokens_}};
  }

  /// A counting sort; no count exceeds `most`.
  void sort_by_falling_count(const std::vector<std::int32_t>& rows, std::size_t most,
                             VectorView<std::int32_t> sorted) const {
    std::vector<std::int64_t> place(most + 2, 0);  // place[most - count + 1]: rows with more units than that
    const auto key = [&](std::int32_t row) {
      return most - static_cast<std::size_t>(count_[static_cast<std::size_t>(row)]);
    };
    for (const std::int32_t row : rows) ++place[key(row) + 1];
    for (std::size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    for (const std::int32_t row : rows) sorted[place[key(row)]++] = row;
  }

  const Context& context_;
  const LocalCandidates& candidates_;
  const GradientLimits& limits_;
  HostArrays& host_arrays_;
  std::vector<TokenGroup> groups_;
  std::vector<std::int32_t> count_;     // by row; all zero between uses
  std::vector<std::uint8_t> is_dense_;  // by row
  std::vector<GradientPart> parts_;
  int unit_tokens_ = 1;
};

}  // namespace

std::vector<GradientPart> plan_gradient(const Context& context, const LocalCandidates& candidates,
                                        const GradientLimits& limits, HostArrays& host_arrays) {
  REPRISE_CHECK(candidates.num_logits <= std::numeric_limits<std::int32_t>::max() &&
                    limits.segment_tokens < std::int64_t{1} << 24 && limits.supertile_tokens >= kRowUnitTokens,
                "{} candidate logits, segments of {} tokens, supertiles of {}", candidates.num_logits,
                limits.segment_tokens, limits.supertile_tokens);
  return Planner(context, candidates, limits, host_arrays).plan();
}

}  // namespace reprise
