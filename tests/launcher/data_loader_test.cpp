#include "launcher/data_loader.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "tests/support/expect_error.hpp"
#include "tests/support/make_dataset.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

/// 37 documents of 0 to 24 tokens with random masks; some train nothing.
class DataLoaderTest : public testing::Test {
 protected:
  void SetUp() override {
    std::mt19937 generator(5);
    DatasetOptions options;
    for (std::size_t d = 0; d < 37; ++d) {
      const std::size_t length = d == 3 ? 0 : d == 4 ? 1 : 2 + generator() % 23;
      documents_.emplace_back();
      options.masks.emplace_back();
      options.weights.emplace_back();
      for (std::size_t i = 0; i < length; ++i) {
        documents_.back().push_back(static_cast<std::int64_t>(1000 * d + i));
        options.masks.back().push_back(d % 7 == 5 ? 0 : static_cast<std::uint8_t>(generator() % 2));
        options.weights.back().push_back(static_cast<float>(generator() % 5) / 4.0f);
      }
    }
    masks_ = options.masks;
    weights_ = options.weights;
    make_dataset(folder_ / "d", documents_, options);
    dataset_ = std::make_unique<IndexedDataset>(folder_ / "d");
  }

  DataLoaderOptions options() const {
    DataLoaderOptions options;
    options.sequence_length = 16;
    options.global_batch = 12;
    options.micro_batch = 2;
    return options;
  }

  TemporaryFolder folder_;
  std::vector<std::vector<std::int64_t>> documents_;
  std::vector<std::vector<std::uint8_t>> masks_;
  std::vector<std::vector<float>> weights_;
  std::unique_ptr<IndexedDataset> dataset_;
};

/// (sample, position, input token, gold, weight) of every target, sorted: what a step trains on, whatever its layout.
using Target = std::tuple<std::uint64_t, std::uint32_t, std::int32_t, std::int32_t, float>;

void add_targets(const MicroBatch& batch, std::vector<Target>& targets) {
  for (std::int64_t s = 0; s < batch.num_samples(); ++s) {
    const auto sample = static_cast<std::size_t>(s);
    for (std::int64_t t = batch.sample_begin[sample]; t < batch.sample_begin[sample + 1]; ++t) {
      const auto i = static_cast<std::size_t>(t);
      const std::int64_t row = batch.row[i];
      EXPECT_EQ(row, batch.document_offsets[sample] + batch.position[i]);
      EXPECT_LT(row, batch.document_offsets[sample + 1]);
      targets.emplace_back(batch.sample_id[sample], batch.position[i], batch.tokens[static_cast<std::size_t>(row)],
                           batch.gold[i], batch.weight[i]);
    }
  }
}

std::vector<Target> step_targets(const IndexedDataset& dataset, DataLoaderOptions options, std::int64_t first) {
  std::vector<Target> targets;
  std::set<std::int64_t> sizes;
  for (options.dp_rank = 0; options.dp_rank < options.dp_size; ++options.dp_rank) {
    const DataLoader loader(dataset, options);
    const DataLoader::Plan plan = loader.plan(first);
    sizes.insert(plan.size());
    for (std::int64_t i = 0; i < plan.size(); ++i) {
      const MicroBatch batch = loader.load(plan, i);
      EXPECT_TRUE(std::is_sorted(batch.row.begin(), batch.row.end()));
      if (options.pack) {
        EXPECT_LE(batch.num_tokens(), options.micro_batch * options.sequence_length);
      } else {
        EXPECT_LE(batch.num_samples(), options.micro_batch);
      }
      add_targets(batch, targets);
    }
  }
  EXPECT_EQ(sizes.size(), 1u) << "ranks differ in micro-batches";
  std::sort(targets.begin(), targets.end());
  return targets;
}

TEST_F(DataLoaderTest, LayoutNeverChangesWhatAStepTrainsOn) {
  for (const std::int64_t first : {0, 12, 36, 1200}) {
    const std::vector<Target> expected = step_targets(*dataset_, options(), first);
    EXPECT_FALSE(expected.empty());
    for (const int dp_size : {1, 2, 3, 4, 6, 12}) {
      for (const std::int64_t micro_batch : {1, 3, 100}) {
        for (const bool pack : {false, true}) {
          DataLoaderOptions layout = options();
          layout.dp_size = dp_size;
          layout.micro_batch = micro_batch;
          layout.pack = pack;
          EXPECT_EQ(step_targets(*dataset_, layout, first), expected) << dp_size << " " << micro_batch << " " << pack;
        }
      }
    }
  }
}

TEST_F(DataLoaderTest, TargetsAreThoseOfTheFiles) {
  DataLoaderOptions whole = options();
  whole.global_batch = 37;
  whole.shuffle = false;
  std::vector<Target> expected;
  for (std::size_t d = 0; d < documents_.size(); ++d) {
    for (std::size_t i = 1; i < std::min<std::size_t>(documents_[d].size(), 17); ++i) {
      if (masks_[d][i] == 0) continue;
      expected.emplace_back(d, i - 1, documents_[d][i - 1], documents_[d][i], weights_[d][i]);
    }
  }
  EXPECT_EQ(step_targets(*dataset_, whole, 0), expected);
}

TEST_F(DataLoaderTest, EveryEpochHoldsEverySampleOnceInAnOrderOfItsOwn) {
  const DataLoader loader(*dataset_, options());
  std::vector<std::vector<std::int64_t>> epochs(3);
  for (std::int64_t sample = 0; sample < 3 * dataset_->size(); ++sample) {
    epochs[static_cast<std::size_t>(sample / dataset_->size())].push_back(loader.order().document(sample));
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  for (auto& epoch : epochs) {
    EXPECT_FALSE(std::is_sorted(epoch.begin(), epoch.end()));
    std::sort(epoch.begin(), epoch.end());
    for (std::int64_t d = 0; d < dataset_->size(); ++d) EXPECT_EQ(epoch[static_cast<std::size_t>(d)], d);
  }
  DataLoaderOptions other = options();
  other.seed = 2;
  const DataLoader reseeded(*dataset_, other);
  std::int64_t same = 0;
  for (std::int64_t sample = 0; sample < dataset_->size(); ++sample) {
    same += loader.order().document(sample) == reseeded.order().document(sample) ? 1 : 0;
  }
  EXPECT_LT(same, dataset_->size() / 2);
}

TEST_F(DataLoaderTest, WithoutShuffleTheOrderIsTheFiles) {
  DataLoaderOptions plain = options();
  plain.shuffle = false;
  const DataLoader loader(*dataset_, plain);
  for (std::int64_t sample = 0; sample < 80; ++sample) EXPECT_EQ(loader.order().document(sample), sample % 37);
}

TEST_F(DataLoaderTest, AStepMayJoinTwoEpochs) {
  DataLoaderOptions plain = options();
  plain.shuffle = false;
  const DataLoader loader(*dataset_, plain);
  std::set<std::int64_t> documents;
  for (const auto& micro_batch : loader.plan(36).documents) documents.insert(micro_batch.begin(), micro_batch.end());
  EXPECT_TRUE(documents.contains(36));
  EXPECT_TRUE(documents.contains(0));
  EXPECT_FALSE(documents.contains(35));
  EXPECT_FALSE(documents.contains(11));  // 36, 0, 1, ... 10
}

TEST_F(DataLoaderTest, ResumingAtACursorGivesTheSameSteps) {
  const DataLoader loader(*dataset_, options());
  const DataLoader resumed(*dataset_, options());  // as after a restart
  for (std::int64_t step = 0; step < 8; ++step) {  // 96 samples: the third epoch begins inside
    EXPECT_EQ(loader.plan(step * 12).documents, resumed.plan(step * 12).documents);
  }
  // Other data-parallel sizes go on at the same sample.
  DataLoaderOptions wide = options();
  wide.dp_size = 4;
  EXPECT_EQ(step_targets(*dataset_, wide, 60), step_targets(*dataset_, options(), 60));
}

TEST_F(DataLoaderTest, StatisticsCountWhatIsCutAndWhatTrainsNothing) {
  const DataStatistics statistics = count_data(*dataset_, 16);
  DataStatistics expected;
  for (std::size_t d = 0; d < documents_.size(); ++d) {
    const auto length = static_cast<std::int64_t>(documents_[d].size());
    std::int64_t targets = 0;
    for (std::int64_t i = 1; i < std::min<std::int64_t>(length, 17); ++i)
      targets += masks_[d][static_cast<std::size_t>(i)];
    expected.samples += 1;
    expected.tokens += std::max<std::int64_t>(0, std::min<std::int64_t>(length, 17) - 1);
    expected.targets += targets;
    expected.truncated += length > 17;
    expected.without_targets += targets == 0;
    expected.longest = std::max(expected.longest, length);
  }
  EXPECT_EQ(statistics.samples, expected.samples);
  EXPECT_EQ(statistics.tokens, expected.tokens);
  EXPECT_EQ(statistics.targets, expected.targets);
  EXPECT_EQ(statistics.truncated, expected.truncated);
  EXPECT_GT(expected.truncated, 0);
  EXPECT_EQ(statistics.without_targets, expected.without_targets);
  EXPECT_GT(expected.without_targets, 5);
  EXPECT_EQ(statistics.longest, expected.longest);
}

TEST_F(DataLoaderTest, PackingFillsRows) {
  DataLoaderOptions packed = options();
  packed.global_batch = 36;
  packed.micro_batch = 1;
  const std::int64_t rows = DataLoader(*dataset_, packed).plan(0).size();
  packed.pack = true;
  EXPECT_LT(DataLoader(*dataset_, packed).plan(0).size(), rows);
}

TEST_F(DataLoaderTest, RanksWithLessWorkGetEmptyMicroBatches) {
  // Of documents 11 and 12 the second trains nothing, so the second rank has nothing to do.
  DataLoaderOptions two = options();
  two.shuffle = false;
  two.global_batch = 2;
  two.dp_size = 2;
  two.dp_rank = 1;
  const DataLoader loader(*dataset_, two);
  const DataLoader::Plan idle = loader.plan(11);
  ASSERT_EQ(idle.size(), 1);
  const MicroBatch batch = loader.load(idle, 0);
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(batch.token_batch().document_offsets.size, 1);
}

TEST_F(DataLoaderTest, UnitsTogetherHoldEverySampleOnce) {
  std::vector<std::vector<std::int64_t>> documents;
  for (std::int64_t d = 0; d < 150; ++d)
    documents.push_back(std::vector<std::int64_t>(static_cast<std::size_t>(d % 20), d));
  make_dataset(folder_ / "many", documents);
  const IndexedDataset dataset(folder_ / "many");
  EXPECT_EQ(num_units(dataset), 3);
  std::vector<std::uint64_t> seen;
  for (std::int64_t unit = 0; unit < num_units(dataset); ++unit) {
    for (const MicroBatch& batch : load_unit(dataset, unit, 5, 16)) {
      EXPECT_LE(batch.num_samples(), 5);
      EXPECT_FALSE(batch.empty());
      for (const std::uint64_t id : batch.sample_id) EXPECT_EQ(static_cast<std::int64_t>(id) / kSamplesPerUnit, unit);
      seen.insert(seen.end(), batch.sample_id.begin(), batch.sample_id.end());
    }
  }
  std::vector<std::uint64_t> expected;
  for (std::uint64_t d = 0; d < 150; ++d) {
    if (d % 20 >= 2) expected.push_back(d);
  }
  EXPECT_EQ(seen, expected);
}

TEST_F(DataLoaderTest, CollectBatchNamesEveryTargetAndItsOwner) {
  const std::vector<MicroBatch> batches = load_unit(*dataset_, 0, 4, 16);
  for (const MicroBatch& batch : batches) {
    const std::vector<std::int32_t> owners = sample_owners(batch, 3);
    const CollectBatch collect = batch.collect_batch(owners);
    EXPECT_EQ(collect.row.size, batch.num_targets());
    EXPECT_EQ(collect.position.size, batch.num_targets());
    EXPECT_EQ(collect.sample_begin.size, batch.num_samples() + 1);
    for (std::int64_t s = 0; s < batch.num_samples(); ++s) {
      EXPECT_EQ(collect.owner[s], static_cast<std::int32_t>(collect.sample_id[s] % 3));
      EXPECT_EQ(collect.sample_hash[s], dataset_->read(static_cast<std::int64_t>(collect.sample_id[s])).hash);
    }
  }
}

/// A second prefix of 20 documents behind that of the fixture.
class BlendTest : public DataLoaderTest {
 protected:
  void SetUp() override {
    DataLoaderTest::SetUp();
    std::vector<std::vector<std::int64_t>> documents;
    for (std::size_t d = 0; d < 20; ++d) {
      documents.emplace_back();
      for (std::size_t i = 0; i < 2 + d % 9; ++i)
        documents.back().push_back(static_cast<std::int64_t>(90000 + 10 * d + i));
    }
    make_dataset(folder_ / "second", documents);
    blend_ = std::make_unique<JoinedDataset>(std::vector<std::string>{folder_ / "d", folder_ / "second"});
  }

  DataLoader loader(const DataLoaderOptions& options) const {
    return {*blend_, options, SampleOrder(blend_->sizes(), {1.0, 2.0}, options.shuffle, options.seed)};
  }

  std::unique_ptr<JoinedDataset> blend_;
};

TEST_F(BlendTest, ADocumentIsThatOfItsPrefixWithItsOrdinal) {
  ASSERT_EQ(blend_->size(), 57);
  const IndexedDataset second(folder_ / "second", 0, 1);
  EXPECT_EQ(blend_->num_tokens(), dataset_->num_tokens() + second.num_tokens());
  for (std::int64_t d = 0; d < 57; ++d) {
    const IndexedDataset& part = d < 37 ? *dataset_ : second;
    const std::int64_t document = d < 37 ? d : d - 37;
    const Sample sample = blend_->read(d), expected = part.read(document);
    EXPECT_EQ(sample.id, expected.id);
    EXPECT_EQ(sample.id >> 48, d < 37 ? 0u : 1u);
    EXPECT_EQ(sample.tokens, expected.tokens);
    EXPECT_EQ(sample.hash, expected.hash);
    EXPECT_EQ(blend_->sample_id(d), sample.id);
    EXPECT_EQ(blend_->length(d), part.length(document));
    EXPECT_EQ(blend_->count_targets(d, 5), part.count_targets(document, 5));
  }
}

TEST_F(BlendTest, LayoutNeverChangesWhatAStepTrainsOn) {
  const auto targets_of = [&](DataLoaderOptions layout, std::int64_t first) {
    std::vector<Target> targets;
    for (layout.dp_rank = 0; layout.dp_rank < layout.dp_size; ++layout.dp_rank) {
      const DataLoader part = loader(layout);
      const DataLoader::Plan plan = part.plan(first);
      for (std::int64_t i = 0; i < plan.size(); ++i) add_targets(part.load(plan, i), targets);
    }
    std::sort(targets.begin(), targets.end());
    return targets;
  };
  for (const std::int64_t first : {0, 12, 120, 1200000}) {
    const std::vector<Target> expected = targets_of(options(), first);
    std::set<std::uint64_t> ordinals;
    for (const Target& target : expected) ordinals.insert(std::get<0>(target) >> 48);
    EXPECT_EQ(ordinals.size(), 2u);
    for (const auto& [dp_size, micro_batch, pack] : {std::tuple{2, 1, true}, {3, 2, false}, {12, 4, true}}) {
      DataLoaderOptions layout = options();
      layout.dp_size = dp_size;
      layout.micro_batch = micro_batch;
      layout.pack = pack;
      EXPECT_EQ(targets_of(layout, first), expected) << dp_size;
    }
  }
}

TEST_F(BlendTest, UnitsOfACollectionHoldEverySampleOfEveryPrefixOnce) {
  std::vector<std::uint64_t> seen, expected;
  for (std::int64_t unit = 0; unit < num_units(*blend_); ++unit) {
    for (const MicroBatch& batch : load_unit(*blend_, unit, 5, 16)) {
      seen.insert(seen.end(), batch.sample_id.begin(), batch.sample_id.end());
    }
  }
  for (std::int64_t d = 0; d < blend_->size(); ++d) {
    if (blend_->count_targets(d, 17) > 0) expected.push_back(blend_->sample_id(d));
  }
  EXPECT_EQ(seen, expected);
}

TEST_F(BlendTest, StatisticsAreThoseOfEachPrefixAndTheirSum) {
  const auto parts = count_parts(*blend_, 16);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].targets, count_data(*dataset_, 16).targets);
  EXPECT_EQ(parts[1].samples, 20);
  const DataStatistics sum = sum_of(parts), whole = count_data(*blend_, 16);
  EXPECT_EQ(sum.samples, whole.samples);
  EXPECT_EQ(sum.tokens, whole.tokens);
  EXPECT_EQ(sum.targets, whole.targets);
  EXPECT_EQ(sum.truncated, whole.truncated);
  EXPECT_EQ(sum.without_targets, whole.without_targets);
  EXPECT_EQ(sum.longest, whole.longest);
}

TEST_F(BlendTest, APrefixWithoutAnyTargetIsNamed) {
  make_dataset(folder_ / "idle", {{1}, {}});
  const JoinedDataset idle({folder_ / "d", folder_ / "idle"});
  expect_error(ErrorKind::kData, {"idle", "none of the 2 documents"}, [&] { (void)count_parts(idle, 16); });
}

TEST_F(DataLoaderTest, OptionsOutOfRangeAreRefused) {
  const auto refused = [&](const std::string& message, auto change) {
    DataLoaderOptions wrong = options();
    change(wrong);
    expect_error(ErrorKind::kUsage, {message}, [&] { DataLoader(*dataset_, wrong); });
  };
  refused("data.sequence_length = 0", [](auto& wrong) { wrong.sequence_length = 0; });
  refused("train.global_batch = 0", [](auto& wrong) { wrong.global_batch = 0; });
  refused("train.micro_batch = -1", [](auto& wrong) { wrong.micro_batch = -1; });
  refused("train.global_batch = 12: must be a multiple of the 5", [](auto& wrong) { wrong.dp_size = 5; });
}

TEST_F(DataLoaderTest, DataWithoutTargetsIsRefused) {
  make_dataset(folder_ / "none", {{1, 2, 3}, {4}}, {.masks = {{1, 0, 0}, {1}}});
  const IndexedDataset none(folder_ / "none");
  expect_error(ErrorKind::kData, {"none of the 2 documents", "none"}, [&] { (void)count_data(none, 16); });
  make_dataset(folder_ / "empty", {});
  const IndexedDataset empty(folder_ / "empty");
  expect_error(ErrorKind::kData, {"none of the 0 documents"}, [&] { (void)count_data(empty, 16); });
  // The only target lies behind the cut.
  make_dataset(folder_ / "late", {{1, 2, 3, 4}}, {.masks = {{0, 0, 0, 1}}});
  const IndexedDataset late(folder_ / "late");
  expect_error(ErrorKind::kData, {"none of the 1 documents"}, [&] { (void)count_data(late, 2); });
}

}  // namespace
}  // namespace reprise
