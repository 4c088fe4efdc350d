#include "launcher/loss_targets.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "launcher/data_loader.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/make_dataset.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

/// Documents and a store whose set at (document, position) is {gold, gold + 1, position + 200}.
class LossTargetsTest : public testing::Test {
 protected:
  void SetUp() override {
    DatasetOptions options;
    for (std::int64_t d = 0; d < 6; ++d) {
      std::vector<std::int64_t> tokens;
      std::vector<std::uint8_t> mask;
      for (std::int64_t i = 0; i < 8 + 3 * d; ++i) {
        tokens.push_back(10 * d + i);
        mask.push_back(i % 3 != 1);
      }
      documents_.push_back(tokens);
      options.masks.push_back(mask);
    }
    make_dataset(folder_ / "d", documents_, options);
    dataset_ = std::make_unique<IndexedDataset>(folder_ / "d");
  }

  SampleRecords records(std::int64_t document) const {
    const Sample sample = dataset_->read(document);
    SampleRecords records;
    records.sample_id = sample.id;
    records.sample_hash = sample.hash;
    for (std::size_t i = 1; i < sample.tokens.size(); ++i) {
      // Position 4 was not chosen when the store was collected.
      if (sample.mask[i] == 0 || i == 5) continue;
      const auto gold = static_cast<std::uint32_t>(sample.tokens[i]);
      records.position.push_back(static_cast<std::uint32_t>(i - 1));
      records.gold.push_back(gold);
      records.flags.push_back(0);
      records.mass.push_back(0.95f);
      records.confidence.push_back(0.5f);
      records.ids.insert(records.ids.end(), {gold, gold + 1, static_cast<std::uint32_t>(i + 199)});
      records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
    }
    return records;
  }

  /// A store of the documents, changed on the way in.
  template <class Change>
  std::unique_ptr<ReplayStoreReader> store(const std::vector<std::int64_t>& documents, Change change) const {
    const std::filesystem::path folder = folder_ / ("store" + std::to_string(stores_++));
    const StoreProvenance provenance = {{"seed", "1"}};
    {
      ReplayStoreWriter writer(folder, 0, provenance);
      for (const std::int64_t document : documents) {
        SampleRecords sample = records(document);
        change(sample);
        writer.append(sample);
      }
      writer.commit(1);
    }
    finish_store(folder, provenance, 1, "{}");
    return std::make_unique<ReplayStoreReader>(folder);
  }
  std::unique_ptr<ReplayStoreReader> store(const std::vector<std::int64_t>& documents = {0, 1, 2, 3, 4, 5}) const {
    return store(documents, [](SampleRecords&) {});
  }

  MicroBatch batch(const std::vector<std::int64_t>& documents, std::int64_t sequence_length) const {
    MicroBatch result;
    for (const std::int64_t document : documents) result.append(dataset_->read(document), sequence_length);
    return result;
  }

  TemporaryFolder folder_;
  std::vector<std::vector<std::int64_t>> documents_;
  std::unique_ptr<IndexedDataset> dataset_;
  mutable int stores_ = 0;
};

/// The sorted candidates of each kept token, found through its tile.
std::vector<std::vector<std::int32_t>> sets_of(const LossTargets& targets) {
  std::vector<std::vector<std::int32_t>> sets;
  const CandidateTiles tiles = targets.tiles.view();
  for (std::int64_t tile = 0; tile < tiles.size(); ++tile) {
    const std::vector<std::int32_t> ids(tiles.ids.data + tiles.id_begin[tile],
                                        tiles.ids.data + tiles.id_begin[tile + 1]);
    for (std::int64_t t = tiles.token_begin[tile]; t < tiles.token_begin[tile + 1]; ++t) sets.push_back(ids);
  }
  return sets;
}

TEST_F(LossTargetsTest, TokenSetsAreThoseOfTheirPosition) {
  const MicroBatch micro_batch = batch({2, 5}, 10);
  const auto reader = store();
  const LossTargets targets = make_loss_targets(micro_batch, reader.get(), Normalization::kToken, 8);
  const auto sets = sets_of(targets);
  ASSERT_EQ(static_cast<std::int64_t>(sets.size()), targets.size());
  ASSERT_GT(targets.size(), 6);
  std::int64_t next = 0;
  for (std::size_t s = 0; s < 2; ++s) {
    EXPECT_EQ(targets.sample_begin[s], next);
    for (std::int64_t t = micro_batch.sample_begin[s]; t < micro_batch.sample_begin[s + 1]; ++t) {
      const auto i = static_cast<std::size_t>(t), n = static_cast<std::size_t>(next);
      if (micro_batch.position[i] == 4) continue;  // not in the store: dropped
      EXPECT_EQ(targets.row[n], micro_batch.row[i]);
      EXPECT_EQ(targets.gold[n], micro_batch.gold[i]);
      EXPECT_EQ(targets.position[n], micro_batch.position[i]);
      EXPECT_EQ(targets.weight[n], 1.0f);
      const std::int32_t gold = micro_batch.gold[i], position = static_cast<std::int32_t>(micro_batch.position[i]);
      EXPECT_EQ(sets[n], (std::vector<std::int32_t>{gold, gold + 1, position + 200}));
      ++next;
    }
  }
  EXPECT_EQ(targets.size(), next);
  EXPECT_EQ(targets.sample_begin.back(), next);
  EXPECT_EQ(targets.loss_batch().row.size, next);
}

TEST_F(LossTargetsTest, TilesDoNotDependOnTruncationOrCompany) {
  const auto reader = store();
  const LossTargets alone = make_loss_targets(batch({5}, 100), reader.get(), Normalization::kTile, 4);
  const LossTargets cut = make_loss_targets(batch({0, 5}, 9), reader.get(), Normalization::kTile, 4);
  const auto whole_sets = sets_of(alone), cut_sets = sets_of(cut);
  const auto first = static_cast<std::size_t>(cut.sample_begin[1]);
  ASSERT_GT(cut_sets.size(), first + 4);
  ASSERT_LT(cut_sets.size() - first, whole_sets.size());
  for (std::size_t i = first; i < cut_sets.size(); ++i) EXPECT_EQ(cut_sets[i], whole_sets[i - first]);
}

TEST_F(LossTargetsTest, FullTrainsThePositionsOfTheStoreOrAll) {
  const MicroBatch micro_batch = batch({1, 3}, 100);
  const LossTargets all = make_loss_targets(micro_batch, nullptr, Normalization::kFull, 8);
  EXPECT_EQ(all.row, micro_batch.row);
  EXPECT_EQ(all.gold, micro_batch.gold);
  const auto reader = store();
  const LossTargets stored = make_loss_targets(micro_batch, reader.get(), Normalization::kFull, 8);
  EXPECT_EQ(stored.size(), all.size() - 2);  // position 4 of both
  EXPECT_EQ(stored.tiles.view().size(), 0);
}

TEST_F(LossTargetsTest, MissingSamplesAreCountedOrSkipped) {
  const auto reader = store({0, 2});
  const MicroBatch micro_batch = batch({0, 1, 2, 3}, 100);
  expect_error(ErrorKind::kStoreMismatch, {"2 of the 4 samples", "document 1", "replay.missing"},
               [&] { (void)make_loss_targets(micro_batch, reader.get(), Normalization::kTile, 8); });
  const LossTargets skipped =
      make_loss_targets(micro_batch, reader.get(), Normalization::kTile, 8, MissingSamples::kSkip);
  EXPECT_EQ(skipped.missing_samples, 2);
  EXPECT_EQ(skipped.sample_begin[1], skipped.sample_begin[2]);
  EXPECT_EQ(skipped.sample_begin.size(), 5u);
  EXPECT_EQ(count_missing_samples(*dataset_, 100, *reader), 4);
  EXPECT_EQ(count_missing_samples(*dataset_, 100, *store()), 0);
}

TEST_F(LossTargetsTest, OtherTokensOrMaskThanCollectedAreRefused) {
  const auto other_hash = store({0, 1}, [](SampleRecords& sample) { sample.sample_hash ^= 1; });
  expect_error(ErrorKind::kStoreMismatch, {"document 1", "tokens or mask"},
               [&] { (void)make_loss_targets(batch({1}, 100), other_hash.get(), Normalization::kTile, 8); });
  const auto other_gold = store({1}, [](SampleRecords& sample) {
    sample.gold[0] += 1;  // the set still holds it
  });
  expect_error(ErrorKind::kStoreMismatch, {"document 1", "next token"},
               [&] { (void)make_loss_targets(batch({1}, 100), other_gold.get(), Normalization::kToken, 8); });
}

TEST_F(LossTargetsTest, EmptyMicroBatchesGiveNoTargets) {
  const auto reader = store();
  const LossTargets targets = make_loss_targets(MicroBatch{}, reader.get(), Normalization::kTile, 8);
  EXPECT_EQ(targets.size(), 0);
  EXPECT_EQ(targets.loss_batch().tiles.size(), 0);
}

TEST_F(LossTargetsTest, TilesOfNoTokenAreRefused) {
  const auto reader = store();
  expect_error(ErrorKind::kUsage, {"replay.tile_tokens = 0"},
               [&] { (void)make_loss_targets(batch({1}, 100), reader.get(), Normalization::kTile, 0); });
}

}  // namespace
}  // namespace reprise
