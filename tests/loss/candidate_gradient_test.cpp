#include "loss/candidate_gradient.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "loss/add_rows.hpp"
#include "parallel/process_groups.hpp"
#include "tests/loss/make_records.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {
namespace {

struct Shape {
  std::int64_t tokens = 60, depth = 24, vocab = 50, tile_tokens = 8, set_size = 12;
  Range own{5, 42};  // of the vocabulary: not all candidates are this rank's
};

/// Tiles, deltas of this rank's candidates and hidden states, all on the host.
struct GradientProblem {
  Shape shape;
  CandidateTilesBuilder tiles;
  std::vector<float> hidden, deltas;
  std::vector<double> d_weight, size;  // the naive sums, and those of absolute terms
  static constexpr float kBefore = 0.25f;

  explicit GradientProblem(const Shape& given) : shape(given) {
    const SampleRecords records =
        random_records(7, shape.tokens, static_cast<std::uint32_t>(shape.vocab), shape.set_size);
    std::vector<std::uint8_t> keep(static_cast<std::size_t>(shape.tokens), 1);
    keep.back() = 0;  // a short tile
    tiles.append(records, keep, shape.tile_tokens);
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < (shape.tokens - 1) * shape.depth; ++i) {
      hidden.push_back(static_cast<float>(BFloat16(normal(random))));
    }
    HostArrays arrays;
    with_context(Stream(CpuStream{}), [&](const Context& context) {
      const LocalCandidates candidates = find_local_candidates(context, tiles.view(), shape.own, arrays);
      for (std::int64_t i = 0; i < candidates.num_logits; ++i) deltas.push_back(normal(random));
      sum_naively(candidates);
    });
  }

  template <class Body>
  static void with_context(const Stream& stream, const Body& body) {
    run_ranks(1, [&](Communicator& world) {
      const ProcessGroups groups = ProcessGroups::make(world, 1);
      Arena arena(stream);
      body(Context{stream, groups, arena, false});
    });
  }

  void sum_naively(const LocalCandidates& candidates) {
    d_weight.assign(static_cast<std::size_t>(shape.own.size() * shape.depth), static_cast<double>(kBefore));
    size = d_weight;
    for (const LocalTile& tile : candidates.tiles) {
      for (std::int64_t k = 0; k < tile.num_ids(); ++k) {
        for (std::int64_t t = 0; t < tile.tokens(); ++t) {
          for (std::int64_t c = 0; c < shape.depth; ++c) {
            const double term =
                static_cast<double>(deltas[static_cast<std::size_t>(tile.logits + k * tile.tokens() + t)]) *
                static_cast<double>(hidden[static_cast<std::size_t>((tile.token_begin + t) * shape.depth + c)]);
            const auto at =
                static_cast<std::size_t>((candidates.ids[tile.id_begin + k] - shape.own.begin) * shape.depth + c);
            d_weight[at] += term;
            size[at] += std::abs(term);
          }
        }
      }
    }
  }

  /// What CandidateGradient makes of it.
  template <class T>
  [[nodiscard]] std::vector<float> run(const Stream& stream, const std::optional<GradientLimits>& limits) const {
    std::vector<float> result;
    with_context(stream, [&](const Context& context) {
      std::vector<T> stored;
      for (const float x : hidden) stored.push_back(T(x));
      const Buffer<T> states = to_device(stream, stored);
      const Buffer<float> delta = to_device(stream, deltas);
      Buffer<float> sums = to_device(stream, std::vector<float>(d_weight.size(), kBefore));
      const MatrixView<const T> view(states.view(), shape.tokens - 1, shape.depth);
      HeadHidden<T> head{view, {}};
      if (stream.is_cpu() || std::is_same_v<T, float>) head.single = as_float(context, view);

      HostArrays arrays;
      const LocalCandidates candidates = find_local_candidates(context, tiles.view(), shape.own, arrays);
      CandidateGradient gradient;
      gradient.plan<T>(context, candidates, arrays, limits);
      gradient.add<T>(context, candidates, delta.view(), head, {sums.view(), shape.own.size(), shape.depth});
      result = to_host(stream, sums.view());
    });
    return result;
  }

  template <class T>
  void check(const std::optional<GradientLimits>& limits = {}) const {
    on_every_stream([&](const Stream& stream) {
      const std::vector<float> sums = run<T>(stream, limits);
      const bool rounds = !stream.is_cpu() && std::is_same_v<T, BFloat16>;  // deltas of dense products
      for (std::size_t i = 0; i < sums.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(sums[i]), d_weight[i], (rounds ? 0x1p-8 : 1e-6) * size[i]) << "element " << i;
        if (size[i] == static_cast<double>(kBefore)) {
          ASSERT_EQ(sums[i], kBefore) << "element " << i << " is not listed";
        }
      }
      ASSERT_EQ(sums, run<T>(stream, limits)) << "another run gives other bits";
    });
  }
};

constexpr GradientLimits kNothingDense{.supertile_tokens = 1024, .min_dense_rows = 1 << 30};
constexpr GradientLimits kSmallPieces{
    .supertile_tokens = 16, .segment_tokens = 30, .dense_divisor = 2, .min_dense_rows = 1, .most_dense_rows = 3};
constexpr GradientLimits kAllDense{.supertile_tokens = 64, .dense_divisor = 1 << 20, .min_dense_rows = 1};

TEST(CandidateGradientTest, TokenSetsAndTilesAgreeWithTheNaiveSum) {
  for (const std::int64_t tile_tokens : {1, 3, 8, 20}) {
    const GradientProblem problem({.tile_tokens = tile_tokens});
    for (const GradientLimits& limits : {kNothingDense, kSmallPieces, kAllDense}) {
      problem.check<float>(limits);
      problem.check<BFloat16>(limits);
    }
  }
}

TEST(CandidateGradientTest, AnyNumberOfColumns) {
  for (const std::int64_t depth : {1, 7, 32, 65, 136}) {
    const GradientProblem problem({.tokens = 21, .depth = depth, .tile_tokens = depth % 2 == 0 ? 1 : 8});
    problem.check<float>(kNothingDense);
    problem.check<BFloat16>(kNothingDense);
    problem.check<BFloat16>(kSmallPieces);
  }
}

TEST(CandidateGradientTest, TheDevicesOwnLimits) {
  const GradientProblem problem({.tokens = 200, .depth = 40, .vocab = 600, .set_size = 30, .own = {0, 600}});
  problem.check<float>();
  problem.check<BFloat16>();
}

TEST(CandidateGradientTest, ARankWithoutCandidates) {
  const GradientProblem problem({.own = {7, 7}});
  problem.check<float>(kNothingDense);
  const GradientProblem other({.vocab = 20, .own = {40, 60}});  // rows that nothing lists
  other.check<BFloat16>(kAllDense);
}

/// Rows and deltas of a plan as a dense matrix [rows, tokens] of delta places, -1 where a token does not list a row.
std::vector<std::int64_t> places_of(const std::vector<GradientPart>& parts, std::int64_t rows, std::int64_t tokens) {
  std::vector<std::int64_t> places(static_cast<std::size_t>(rows * tokens), -1);
  for (const GradientPart& part : parts) {
    for (std::int64_t i = 0; i < part.list.rows.size; ++i) {
      for (std::int32_t u = part.list.begin[i]; u < part.list.begin[i + 1]; ++u) {
        const RowUnit unit = part.list.units[u];
        for (int j = 0; j < unit.count(); ++j) {
          auto& place =
              places[static_cast<std::size_t>(part.list.rows[i] * tokens + part.token_begin + unit.token() + j)];
          EXPECT_EQ(place, -1) << "a pair comes twice";
          EXPECT_LT(unit.token() + j, part.tokens);
          place = unit.deltas + j;
        }
      }
    }
  }
  return places;
}

// On the CPU the plan's arrays can be read where they are.
TEST(GradientPlanTest, HoldsEveryPairOnceAndOrdersRowsByLength) {
  for (const std::int64_t tile_tokens : {1, 8, 20}) {
    const GradientProblem problem({.tile_tokens = tile_tokens});
    const Shape& shape = problem.shape;
    GradientProblem::with_context(Stream(CpuStream{}), [&](const Context& context) {
      HostArrays arrays;
      const LocalCandidates candidates = find_local_candidates(context, problem.tiles.view(), shape.own, arrays);
      std::vector<std::int64_t> want(static_cast<std::size_t>(shape.own.size() * shape.tokens), -1);
      for (const LocalTile& tile : candidates.tiles) {
        for (std::int64_t k = 0; k < tile.num_ids(); ++k) {
          for (std::int64_t t = 0; t < tile.tokens(); ++t) {
            const std::int64_t row = candidates.ids[tile.id_begin + k] - shape.own.begin;
            want[static_cast<std::size_t>(row * shape.tokens + tile.token_begin + t)] =
                tile.logits + k * tile.tokens() + t;
          }
        }
      }
      for (const GradientLimits& limits : {kNothingDense, kSmallPieces, kAllDense}) {
        const auto parts = plan_gradient(context, candidates, limits, arrays);
        EXPECT_EQ(places_of(parts, shape.own.size(), shape.tokens), want);
        for (const GradientPart& part : parts) {
          EXPECT_LE(part.tokens, part.is_dense ? limits.segment_tokens : limits.supertile_tokens);
          EXPECT_TRUE(!part.is_dense || part.list.rows.size <= limits.most_dense_rows);
          for (std::int64_t i = 0; !part.is_dense && i + 2 < part.list.begin.size; ++i) {
            const auto& begin = part.list.begin;
            EXPECT_GE(begin[i + 1] - begin[i], begin[i + 2] - begin[i + 1]);
          }
        }
      }
    });
  }
}

TEST(AddRowsTest, AddsToTheRowsOfTheIndex) {
  for (const std::int64_t cols : {1, 8, 300}) {
    on_every_stream([&](const Stream& stream) {
      std::vector<float> from, to;
      for (std::int64_t i = 0; i < 3 * cols; ++i) from.push_back(static_cast<float>(i));
      for (std::int64_t i = 0; i < 7 * cols; ++i) to.push_back(static_cast<float>(i) * 0.5f);
      const auto source = to_device(stream, from);
      const auto index = to_device(stream, std::vector<std::int32_t>{6, 0, 3});
      auto target = to_device(stream, to);
      add_rows(stream, {source.view(), 3, cols}, index.view(), {target.view(), 7, cols});
      const std::int64_t rows[] = {6, 0, 3};
      for (std::int64_t r = 0; r < 3; ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          to[static_cast<std::size_t>(rows[r] * cols + c)] += from[static_cast<std::size_t>(r * cols + c)];
        }
      }
      EXPECT_EQ(to_host(stream, target.view()), to);
    });
  }
}

}  // namespace
}  // namespace reprise
