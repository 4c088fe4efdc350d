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
        is_dense_(static_cast<std::size_t>(candidates.own.size()), 0),
        next_(static_cast<std::size_t>(candidates.own.size()), nullptr) {
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
    for (GradientPart& part : parts_) {
      RowList& list = part.list;
      list.rows = host_arrays_.on_device<std::int32_t>(context_.stream, list.rows);
      list.begin = host_arrays_.on_device<std::int32_t>(context_.stream, list.begin);
      list.units = host_arrays_.on_device<RowUnit>(context_.stream, list.units);
    }
    host_arrays_.make_ready(context_.stream);
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
    // Supertiles of about the same size: a short last one would update nearly as many rows.
    const std::int64_t tokens = end_token(last) - groups_[first].token;
    const std::int64_t share = ceil_div(tokens, ceil_div(tokens, limits_.supertile_tokens));
    const std::int64_t most = std::min(limits_.supertile_tokens, round_up(share, unit_tokens_));
    std::vector<std::size_t> bounds{first};
    while (bounds.back() < last) bounds.push_back(groups_end(bounds.back(), last, most));

    std::vector<std::vector<std::int32_t>> counts;  // units of rows, supertile by supertile
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
      counts.emplace_back(is_dense_.size(), 0);
      for_each_id(bounds[i], bounds[i + 1],
                  [&](const TokenGroup&, const LocalTile&, std::int64_t, std::size_t row) { ++counts.back()[row]; });
    }
    const std::vector<std::int32_t> total = sum_of(counts);
    const std::vector<std::int32_t> dense = find_dense_rows(total, static_cast<std::int64_t>(last - first));
    for (std::size_t begin = 0; begin < dense.size(); begin += static_cast<std::size_t>(limits_.most_dense_rows)) {
      const std::size_t end = std::min(dense.size(), begin + static_cast<std::size_t>(limits_.most_dense_rows));
      start_part(first, last,
                 {dense.begin() + static_cast<std::ptrdiff_t>(begin), dense.begin() + static_cast<std::ptrdiff_t>(end)},
                 total);
      parts_.back().is_dense = true;
    }
    for (const std::int32_t row : dense) is_dense_[static_cast<std::size_t>(row)] = 1;
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
      start_part(bounds[i], bounds[i + 1], sparse_rows(counts[i], bounds[i + 1] - bounds[i]), counts[i]);
      fill(bounds[i], bounds[i + 1], groups_[first].token);
    }
    for (const std::int32_t row : dense) is_dense_[static_cast<std::size_t>(row)] = 0;
  }

  [[nodiscard]] std::int64_t end_token(std::size_t last) const {
    return groups_[last - 1].token + groups_[last - 1].tokens;
  }

  static std::vector<std::int32_t> sum_of(const std::vector<std::vector<std::int32_t>>& counts) {
    std::vector<std::int32_t> total = counts.front();
    for (std::size_t i = 1; i < counts.size(); ++i) {
      for (std::size_t row = 0; row < total.size(); ++row) total[row] += counts[i][row];
    }
    return total;
  }

  /// Ascending.
  [[nodiscard]] std::vector<std::int32_t> find_dense_rows(const std::vector<std::int32_t>& total,
                                                          std::int64_t groups) const {
    std::vector<std::int32_t> rows;
    for (std::size_t row = 0; row < total.size(); ++row) {
      if (total[row] * limits_.dense_divisor > groups) rows.push_back(static_cast<std::int32_t>(row));
    }
    if (std::ssize(rows) < limits_.min_dense_rows) rows.clear();
    return rows;
  }

  /// The rows that are not dense, by falling count, then ascending: a counting sort. No count exceeds `most`.
  [[nodiscard]] std::vector<std::int32_t> sparse_rows(const std::vector<std::int32_t>& count, std::size_t most) const {
    std::vector<std::int64_t> place(most + 2, 0);  // by (most - count): where the next such row goes
    const auto is_listed = [&](std::size_t row) { return count[row] != 0 && is_dense_[row] == 0; };
    const auto key = [&](std::size_t row) { return most - static_cast<std::size_t>(count[row]); };
    for (std::size_t row = 0; row < count.size(); ++row) {
      if (is_listed(row)) ++place[key(row) + 1];
    }
    for (std::size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    std::vector<std::int32_t> rows(static_cast<std::size_t>(place[most]));
    for (std::size_t row = 0; row < count.size(); ++row) {
      if (is_listed(row)) rows[static_cast<std::size_t>(place[key(row)]++)] = static_cast<std::int32_t>(row);
    }
    return rows;
  }

  /// A part with room for the rows' units, which `next_` points to from now on.
  void start_part(std::size_t first, std::size_t last, const std::vector<std::int32_t>& rows,
                  const std::vector<std::int32_t>& count) {
    const std::int64_t size = std::ssize(rows);
    const auto own_rows = host_arrays_.vector<std::int32_t>(context_.stream, size, "rows with gradients");
    const auto begin = host_arrays_.vector<std::int32_t>(context_.stream, size + 1, "units of rows");
    std::copy(rows.begin(), rows.end(), own_rows.begin());
    begin[0] = 0;
    for (std::int64_t i = 0; i < size; ++i) begin[i + 1] = begin[i] + count[static_cast<std::size_t>(own_rows[i])];
    const auto units = host_arrays_.vector<RowUnit>(context_.stream, begin[size], "tokens by row");
    for (std::int64_t i = 0; i < size; ++i) next_[static_cast<std::size_t>(own_rows[i])] = units.data + begin[i];
    parts_.push_back({.token_begin = groups_[first].token,
                      .tokens = end_token(last) - groups_[first].token,
                      .list = {own_rows, begin, units, unit_tokens_}});
  }

  /// The units of the groups go where their rows want them, in the order of the tokens.
  void fill(std::size_t first, std::size_t last, std::int64_t segment_token) {
    const std::int64_t origin[] = {groups_[first].token, segment_token};
    for_each_id(first, last, [&](const TokenGroup& group, const LocalTile& tile, std::int64_t id, std::size_t row) {
      *next_[row]++ = RowUnit::make(group.token - origin[is_dense_[row]], group.tokens,
                                    tile.logits + id * tile.tokens() + group.token - tile.token_begin);
    });
  }

  const Context& context_;
  const LocalCandidates& candidates_;
  const GradientLimits& limits_;
  HostArrays& host_arrays_;
  std::vector<TokenGroup> groups_;
  std::vector<std::uint8_t> is_dense_;  // by row
  std::vector<RowUnit*> next_;          // by row: where its next unit goes
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
