// The visit of the candidates alone: all its kernels, by depth, tile and set sizes that choose them.
#include "loss/restricted_head.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

#include "parallel/self_communicator.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

struct VisitShape {
  std::int64_t depth;
  std::vector<std::int64_t> tile_tokens;  // tokens of each tile
  std::vector<std::int64_t> tile_ids;     // candidates of each tile
  LogitRule rule = {};
  std::int64_t first_id = 0, own_ids = 1 << 20;  // this rank's shard of the vocabulary
};

constexpr std::int64_t kVocab = 400;

template <class T>
struct VisitProblem {
  VisitShape shape;
  CandidateTilesBuilder tiles;
  std::vector<T> hidden, weight;  // [T, D], [V, D]

  explicit VisitProblem(const VisitShape& visit_shape) : shape(visit_shape) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    const std::int64_t vocab = std::max(kVocab, *std::max_element(shape.tile_ids.begin(), shape.tile_ids.end()));
    for (std::size_t i = 0; i < shape.tile_tokens.size(); ++i) {
      std::vector<std::int32_t> all(static_cast<std::size_t>(vocab));
      for (std::int64_t id = 0; id < vocab; ++id) all[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(id);
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + shape.tile_ids[i]);
      tiles.ids.insert(tiles.ids.end(), all.begin(), all.begin() + shape.tile_ids[i]);
      tiles.id_begin.push_back(std::ssize(tiles.ids));
      tiles.token_begin.push_back(tiles.token_begin.back() + shape.tile_tokens[i]);
    }
    const float spread = 2.0f / std::sqrt(static_cast<float>(shape.depth));
    for (std::int64_t i = 0; i < tokens() * shape.depth; ++i) hidden.push_back(T(normal(random)));
    for (std::int64_t i = 0; i < vocab * shape.depth; ++i) weight.push_back(T(spread * normal(random)));
  }
  [[nodiscard]] std::int64_t tokens() const { return tiles.token_begin.back(); }
  [[nodiscard]] Range own() const {
    const std::int64_t vocab = std::ssize(weight) / shape.depth;
    return {shape.first_id, std::min(vocab, shape.first_id + shape.own_ids)};
  }
  [[nodiscard]] double hidden_at(std::int64_t t, std::int64_t i) const {
    return static_cast<double>(static_cast<float>(hidden[static_cast<std::size_t>(t * shape.depth + i)]));
  }
  [[nodiscard]] double weight_at(std::int64_t id, std::int64_t i) const {
    return static_cast<double>(static_cast<float>(weight[static_cast<std::size_t>(id * shape.depth + i)]));
  }
  [[nodiscard]] double dot(std::int64_t t, std::int64_t id) const {
    double sum = 0.0;
    for (std::int64_t i = 0; i < shape.depth; ++i) sum += hidden_at(t, i) * weight_at(id, i);
    return sum;
  }
};

struct VisitAnswer {
  LocalCandidates candidates;
  HostArrays host_arrays;
  std::vector<float> logits, accumulator;
  std::vector<TokenStatistics> statistics;
};

template <class T>
VisitAnswer run_visit(const Stream& stream, const VisitProblem<T>& problem) {
  const auto world = make_self_communicator();
  const ProcessGroups groups = ProcessGroups::make(*world, 1);
  Arena arena(stream);
  const Context context{stream, groups, arena};
  const Buffer<T> hidden = to_device(stream, problem.hidden);
  const Range own = problem.own();
  std::vector<T> own_rows(problem.weight.begin() + own.begin * problem.shape.depth,
                          problem.weight.begin() + own.end * problem.shape.depth);
  const Buffer<T> weight = to_device(stream, own_rows);
  VisitAnswer answer;
  answer.candidates = find_local_candidates(context, problem.tiles.view(), own, answer.host_arrays);
  const auto logits = arena.vector<float>(answer.candidates.num_logits);
  const auto accumulator = arena.matrix<float>(problem.tokens(), problem.shape.depth);
  const auto statistics = arena.vector<TokenStatistics>(problem.tokens());
  const MatrixView<const T> stored(hidden.view(), problem.tokens(), problem.shape.depth);
  const HeadHidden<T> head{
      stored, stream.is_cpu() || std::is_same_v<T, float> ? as_float(context, stored) : MatrixView<const float>()};
  visit_candidates<T>(context, answer.host_arrays,
                      {head, MatrixView<const T>(weight.view(), own.size(), problem.shape.depth), answer.candidates,
                       problem.shape.rule, logits, accumulator, statistics});
  answer.logits = to_host(stream, logits);
  answer.accumulator = to_host(stream, accumulator.flat());
  answer.statistics = to_host(stream, statistics);
  return answer;
}

TEST(LocalCandidatesTest, IdsReachTheDeviceWhateverTheirUpperBits) {
  std::mt19937_64 random(3);
  for (const std::int32_t vocab : {100, 1 << 16, (1 << 16) + 1, 300000}) {
    CandidateTilesBuilder tiles;
    for (const std::size_t size : {1, 3, 40, 200}) {
      std::set<std::int32_t> ids{vocab - 1};
      for (const std::int32_t id : {0, (1 << 16) - 1, 1 << 16, 1 << 17}) {
        if (id < vocab && ids.size() < size) ids.insert(id);
      }
      while (ids.size() < std::min<std::size_t>(size, 60)) {
        ids.insert(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab)));
      }
      tiles.ids.insert(tiles.ids.end(), ids.begin(), ids.end());
      tiles.id_begin.push_back(std::ssize(tiles.ids));
      tiles.token_begin.push_back(tiles.token_begin.back() + 2);
    }
    on_every_stream([&](const Stream& stream) {
      const auto world = make_self_communicator();
      const ProcessGroups groups = ProcessGroups::make(*world, 1);
      for (const Range own : {Range{0, vocab}, Range{vocab / 3, vocab}, Range{0, vocab / 3}, Range{7, 7}}) {
        Arena arena(stream);
        HostArrays host_arrays;
        const LocalCandidates local = find_local_candidates({stream, groups, arena}, tiles.view(), own, host_arrays);
        const std::vector<std::int32_t> expected(local.ids.begin(), local.ids.end());
        EXPECT_EQ(to_host(stream, local.device_ids), expected) << vocab << " ids, own from " << own.begin;
      }
    });
  }
}

/// Against float64. What is rounded to bfloat16 on a GPU, exp(z - max) dz/dx, may differ by 2^-9 of its part.
template <class T>
void expect_right(const VisitProblem<T>& problem, const VisitAnswer& answer, double factor_bound) {
  const VisitShape& shape = problem.shape;
  const double scale = static_cast<double>(shape.rule.scale), cap = static_cast<double>(shape.rule.softcap);
  for (const LocalTile& tile : answer.candidates.tiles) {
    for (std::int64_t t = tile.token_begin; t < tile.token_end; ++t) {
      double max = -INFINITY, sum = 0.0;
      std::vector<double> logits, slopes;
      for (std::int64_t k = 0; k < tile.num_ids(); ++k) {
        const double x = scale * problem.dot(t, answer.candidates.ids[tile.id_begin + k]);
        logits.push_back(cap > 0.0 ? cap * std::tanh(x / cap) : x);
        slopes.push_back(cap > 0.0 ? scale * (1.0 - logits.back() * logits.back() / (cap * cap)) : scale);
        max = std::max(max, logits.back());
        const float found =
            answer.logits[static_cast<std::size_t>(tile.logits + k * tile.tokens() + t - tile.token_begin)];
        ASSERT_NEAR(static_cast<double>(found), logits.back(), 2e-5 * (1.0 + std::abs(logits.back())))
            << "token " << t << ", candidate " << k;
      }
      for (const double z : logits) sum += std::exp(z - max);
      const TokenStatistics& found = answer.statistics[static_cast<std::size_t>(t)];
      if (tile.num_ids() == 0) {
        EXPECT_EQ(found.max, -INFINITY);
        EXPECT_EQ(found.sum_exp, 0.0f);
      } else {
        ASSERT_NEAR(static_cast<double>(found.max), max, 2e-5 * (1.0 + std::abs(max))) << "token " << t;
        ASSERT_NEAR(static_cast<double>(found.sum_exp), sum, 1e-4 * sum) << "token " << t;
      }
      EXPECT_EQ(found.gold_logit, 0.0f);
      for (std::int64_t i = 0; i < shape.depth; ++i) {
        double want = 0.0, size = 0.0;
        for (std::size_t k = 0; k < logits.size(); ++k) {
          const std::int32_t id = answer.candidates.ids[tile.id_begin + static_cast<std::int64_t>(k)];
          const double part = std::exp(logits[k] - max) * slopes[k] * problem.weight_at(id, i);
          want += part;
          size += std::abs(part);
        }
        ASSERT_NEAR(static_cast<double>(answer.accumulator[static_cast<std::size_t>(t * shape.depth + i)]), want,
                    (1e-4 + factor_bound) * size + 1e-12)
            << "token " << t << ", column " << i;
      }
    }
  }
}

template <class T>
void check_visit(const VisitShape& shape) {
  const VisitProblem<T> problem(shape);
  on_every_stream([&](const Stream& stream) {
    const VisitAnswer answer = run_visit(stream, problem);
    expect_right(problem, answer, std::is_same_v<T, float> || stream.is_cpu() ? 0.0 : 0x1p-8);
    const VisitAnswer again = run_visit(stream, problem);
    EXPECT_EQ(answer.accumulator, again.accumulator);
    EXPECT_EQ(answer.logits, again.logits);
  });
}
void check_visit_of_both_types(const VisitShape& shape) {
  SCOPED_TRACE("D = " + std::to_string(shape.depth));
  check_visit<float>(shape);
  check_visit<BFloat16>(shape);
}

TEST(RestrictedHeadTest, SetsOfOneToken) {
  check_visit_of_both_types({.depth = 24, .tile_tokens = {1, 1, 1, 1}, .tile_ids = {1, 4, 7, 33}});
  check_visit_of_both_types({.depth = 520, .tile_tokens = {1, 1}, .tile_ids = {13, 2}});
  check_visit_of_both_types({.depth = 1032, .tile_tokens = {1, 1}, .tile_ids = {9, 3}});
}

TEST(RestrictedHeadTest, SetsOfOneTokenOfManyColumns) {
  check_visit_of_both_types({.depth = 4096, .tile_tokens = {1}, .tile_ids = {6}});
  check_visit_of_both_types({.depth = 4104, .tile_tokens = {1}, .tile_ids = {5}});
}

TEST(RestrictedHeadTest, TilesOfUpToEightTokens) {
  check_visit_of_both_types({.depth = 64, .tile_tokens = {8, 2, 5}, .tile_ids = {40, 16, 1}});
  check_visit_of_both_types({.depth = 200, .tile_tokens = {8, 3, 16}, .tile_ids = {33, 7, 18}});
  check_visit_of_both_types({.depth = 1096, .tile_tokens = {7, 8}, .tile_ids = {21, 50}});
}

TEST(RestrictedHeadTest, TilesOfManyColumns) {
  check_visit_of_both_types({.depth = 4096, .tile_tokens = {8}, .tile_ids = {37}});
  check_visit_of_both_types({.depth = 4160, .tile_tokens = {6}, .tile_ids = {19}});
}

TEST(RestrictedHeadTest, WideTiles) {
  check_visit_of_both_types({.depth = 72, .tile_tokens = {64, 20}, .tile_ids = {130, 31}});
  check_visit_of_both_types({.depth = 520, .tile_tokens = {33, 75, 17}, .tile_ids = {34, 3, 10}});
}

TEST(RestrictedHeadTest, EveryDepth) {
  for (const std::int64_t depth : {1, 7, 20, 33, 129}) {
    check_visit_of_both_types({.depth = depth, .tile_tokens = {1, 8, 3, 19}, .tile_ids = {9, 20, 1, 6}});
  }
}

TEST(RestrictedHeadTest, LargeSetsAreCutIntoPieces) {
  check_visit_of_both_types({.depth = 16, .tile_tokens = {1, 5, 1}, .tile_ids = {200, 131, 65}});
  check_visit_of_both_types({.depth = 3, .tile_tokens = {1, 5}, .tile_ids = {129, 64}});
}

TEST(RestrictedHeadTest, SoftcapAndScale) {
  const LogitRule rule{.scale = -1.5f, .softcap = 2.5f};
  check_visit_of_both_types({.depth = 64, .tile_tokens = {1, 8, 40}, .tile_ids = {20, 20, 20}, .rule = rule});
  check_visit_of_both_types({.depth = 5, .tile_tokens = {1, 8}, .tile_ids = {20, 20}, .rule = rule});
}

TEST(RestrictedHeadTest, ShardsWithoutCandidates) {
  check_visit_of_both_types(
      {.depth = 16, .tile_tokens = {1, 4, 30}, .tile_ids = {2, 2, 2}, .first_id = 100, .own_ids = 30});
  check_visit_of_both_types(
      {.depth = 16, .tile_tokens = {1, 4, 30}, .tile_ids = {2, 2, 2}, .first_id = 100, .own_ids = 0});
}

}  // namespace
}  // namespace reprise
