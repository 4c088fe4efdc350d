#include "loss/candidate_tiles.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "tests/loss/make_records.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

struct Tile {
  std::int64_t tokens = 0;
  std::vector<std::int32_t> ids;
  friend bool operator==(const Tile&, const Tile&) = default;
};

std::vector<Tile> naive_tiles(const SampleRecords& records, const std::vector<std::uint8_t>& keep,
                              std::int64_t tile_tokens) {
  std::vector<Tile> tiles;
  for (std::int64_t begin = 0; begin < records.size(); begin += tile_tokens) {
    Tile tile;
    std::set<std::int32_t> ids;
    for (std::int64_t t = begin; t < std::min(records.size(), begin + tile_tokens); ++t) {
      const auto token = static_cast<std::size_t>(t);
      if (keep[token] != 0) ++tile.tokens;
      for (std::int64_t i = records.id_begin[token]; i < records.id_begin[token + 1]; ++i) {
        ids.insert(static_cast<std::int32_t>(records.ids[static_cast<std::size_t>(i)]));
      }
    }
    tile.ids.assign(ids.begin(), ids.end());
    if (tile.tokens > 0) tiles.push_back(tile);
  }
  return tiles;
}

std::vector<Tile> tiles_of(const CandidateTiles& view) {
  std::vector<Tile> tiles;
  for (std::int64_t i = 0; i < view.size(); ++i) {
    tiles.push_back({view.token_begin[i + 1] - view.token_begin[i],
                     {view.ids.data + view.id_begin[i], view.ids.data + view.id_begin[i + 1]}});
  }
  return tiles;
}

TEST(CandidateTiles, AreTheUnionsOfAllRecordsOfTheTile) {
  std::mt19937_64 random(3);
  for (const std::int64_t tile_tokens : {1, 2, 3, 8, 64, 1000}) {
    CandidateTilesBuilder builder;
    std::vector<Tile> expected;
    for (const std::int64_t tokens : {1, 7, 8, 9, 0, 40}) {
      const SampleRecords records = random_records(static_cast<std::uint64_t>(tokens), tokens, 300, 20);
      std::vector<std::uint8_t> keep(static_cast<std::size_t>(tokens));
      for (auto& flag : keep) flag = random() % 3 != 0;
      builder.append(records, keep, tile_tokens);
      for (const Tile& tile : naive_tiles(records, keep, tile_tokens)) expected.push_back(tile);
    }
    EXPECT_EQ(tiles_of(builder.view()), expected) << tile_tokens;
    builder.clear();
    EXPECT_EQ(builder.view().size(), 0);
    EXPECT_TRUE(builder.view().ids.empty());
  }
}

TEST(CandidateTiles, AbsentTokensNeverChangeTheSetsOfOthers) {
  const SampleRecords records = random_records(5, 30, 500, 30);
  CandidateTilesBuilder all, some;
  all.append(records, std::vector<std::uint8_t>(30, 1), 8);
  std::vector<std::uint8_t> keep(30, 0);
  keep[9] = keep[29] = 1;  // only tiles 1 and 3 stay
  some.append(records, keep, 8);
  const auto every = tiles_of(all.view()), left = tiles_of(some.view());
  ASSERT_EQ(every.size(), 4u);
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].ids, every[1].ids);
  EXPECT_EQ(left[1].ids, every[3].ids);
  EXPECT_EQ(left[0].tokens, 1);
}

TEST(CandidateTiles, WrongInput) {
  SampleRecords records = random_records(5, 4, 50, 5);
  const std::vector<std::uint8_t> keep(4, 1);
  CandidateTilesBuilder builder;
  expect_error(ErrorKind::kUsage, {"tile_tokens = 0"}, [&] { builder.append(records, keep, 0); });
  expect_error(ErrorKind::kInternal, {"flags"}, [&] { builder.append(records, std::vector<std::uint8_t>(3, 1), 8); });
  records.ids.back() = 0x80000000u;
  expect_error(ErrorKind::kData, {"2147483648", "sample 5"}, [&] { builder.append(records, keep, 8); });
  EXPECT_EQ(builder.view().size(), 0);
}

TEST(SampleNegatives, SortedUniqueInRangeAndOfSeedAndStepAlone) {
  const auto first = sample_negatives(7, 3, 512, 1000);
  EXPECT_EQ(first, sample_negatives(7, 3, 512, 1000));
  EXPECT_NE(first, sample_negatives(7, 4, 512, 1000));
  EXPECT_NE(first, sample_negatives(8, 3, 512, 1000));
  EXPECT_LT(first.size(), 512u);  // draws with replacement
  EXPECT_GT(first.size(), 350u);  // 1000 (1 - exp(-0.512)) = 401 expected
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(first[i] >= 0 && first[i] < 1000 && (i == 0 || first[i - 1] < first[i]));
  }
  EXPECT_TRUE(sample_negatives(7, 3, 0, 1000).empty());
  EXPECT_EQ(sample_negatives(7, 3, 9, 1), std::vector<std::int32_t>{0});
}

TEST(SampleNegatives, AreUniform) {
  std::vector<int> hits(10);
  int draws = 0;
  for (std::uint64_t step = 0; step < 4000; ++step) {
    for (const std::int32_t id : sample_negatives(1, step, 1, 10)) ++hits[static_cast<std::size_t>(id)], ++draws;
  }
  EXPECT_EQ(draws, 4000);
  for (const int count : hits) EXPECT_NEAR(count, 400, 100);  // 5 standard deviations
}

}  // namespace
}  // namespace reprise
