#include <gtest/gtest.h>

#include <tuple>

#include "launcher/collector.hpp"
#include "tests/launcher/run_steps.hpp"
#include "tests/launcher/step_oracle.hpp"
#include "tests/support/expect_error.hpp"

// How samples are cut into micro-batches, rows and ranks changes a step by rounding only, and the recorded sets by
// hardly any.

namespace reprise {
namespace {

/// Loss and gradients of one step; AdamW's first moment is the gradient times 1 - beta1.
struct Gradients {
  double loss = 0.0, norm = 0.0;
  std::int64_t tokens = 0;
  Tables tables;
};

Gradients one_step(RunFixture& fixture, int tensor, int data) {
  fixture.config.optimizer.clip_norm = 0.0;
  Outcome outcome = run_steps(fixture, tensor, data, 1, 1e-3);
  Gradients gradients{outcome.metrics[0].loss, outcome.metrics[0].grad_norm, outcome.metrics[0].tokens, {}};
  gradients.tables = std::move(outcome.exp_avg);
  for (auto& [name, table] : gradients.tables) {
    for (double& value : table.data) value /= 1.0 - fixture.config.optimizer.betas[0];
  }
  return gradients;
}

void expect_same(const Gradients& actual, const Gradients& expected) {
  EXPECT_EQ(actual.tokens, expected.tokens);
  EXPECT_NEAR(actual.loss, expected.loss, 2e-6);
  EXPECT_NEAR(actual.norm, expected.norm, 2e-5 * expected.norm);
  ASSERT_EQ(actual.tables.size(), expected.tables.size());
  for (const auto& [name, table] : expected.tables) {
    expect_close(actual.tables.at(name), table, 2e-5, "gradient of " + name);
  }
}

struct Head {
  const char* normalization;
  std::int64_t tile_tokens, negatives;
};

class BatchingTest : public testing::TestWithParam<Head> {
 protected:
  BatchingTest() {
    const Head head = GetParam();
    fixture_.config.replay.normalization = head.normalization;
    fixture_.config.replay.tile_tokens = head.tile_tokens;
    fixture_.config.replay.negatives = head.negatives;
    fixture_.config.replay.store = fixture_.folder / "store";
    make_store(fixture_);
  }
  RunFixture fixture_{weighted_documents()};
};

TEST_P(BatchingTest, PackingMicroBatchesAndRanksGiveTheSameLossAndGradients) {
  fixture_.config.train.micro_batch = 1;
  const Gradients alone = one_step(fixture_, 1, 1);  // every sample by itself
  for (const bool pack : {false, true}) {
    for (const std::int64_t micro_batch : {1, 2, 4}) {
      for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
        SCOPED_TRACE(fmt::format("pack {}, micro-batch {}, tensor {} x data {}", pack, micro_batch, tensor, data));
        fixture_.config.data.pack = pack;
        fixture_.config.train.micro_batch = micro_batch;
        fixture_.config.parallel.sequence_parallel = tensor == 2 && data == 2;
        expect_same(one_step(fixture_, tensor, data), alone);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, BatchingTest,
                         testing::Values(Head{"full", 1, 0}, Head{"token", 1, 8}, Head{"tile", 3, 0}),
                         [](const auto& head) { return std::string(head.param.normalization); });

/// The fixture's documents in two prefixes, at the same places of an epoch.
RandomDocumentsOptions eight_documents() {
  RandomDocumentsOptions options;
  options.count = 8;
  return options;
}

void split_data(RunFixture& fixture, std::size_t first_count) {
  const auto part = [&](std::size_t begin, std::size_t end, const char* name) {
    DatasetOptions options;
    std::vector<std::vector<std::int64_t>> tokens;
    for (std::size_t d = begin; d < end; ++d) {
      tokens.push_back(fixture.documents.tokens[d]);
      options.masks.push_back(fixture.documents.options.masks[d]);
    }
    make_dataset(fixture.folder / name, tokens, options);
  };
  part(0, first_count, "first");
  part(first_count, fixture.documents.tokens.size(), "second");
  fixture.config.data.train = {fixture.folder / "first", fixture.folder / "second"};
}

TEST(Blend, TwoPrefixesTrainAsTheirDocumentsInOne) {
  RunFixture fixture(eight_documents());
  fixture.config.replay.normalization = "tile";
  fixture.config.replay.store = fixture.folder / "store";
  make_store(fixture);
  const Gradients whole = one_step(fixture, 1, 1);
  split_data(fixture, 3);
  fixture.config.replay.store = fixture.folder / "split_store";
  make_store(fixture);  // its ids tell the prefixes apart
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 2}}) {
    expect_same(one_step(fixture, tensor, data), whole);
  }
}

TEST(Blend, AStoreOfOtherPrefixesIsRefusedByTheirNumber) {
  RunFixture fixture(eight_documents());
  split_data(fixture, 3);
  fixture.config.replay.normalization = "tile";
  fixture.config.replay.store = fixture.folder / "store";
  make_store(fixture);
  fixture.documents.tokens[5][0] ^= 1;
  split_data(fixture, 3);
  expect_error(ErrorKind::kStoreMismatch, {"data (tokens and masks) of prefix 1 of data.train"},
               [&] { (void)one_step(fixture, 1, 1); });
  fixture.config.data.train.pop_back();  // what is left of the store's prefixes is as it was
  EXPECT_GT(one_step(fixture, 1, 1).tokens, 0);
}

/// Recorded ids by (sample, position).
using RecordedSets = std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<std::uint32_t>>;

RecordedSets collect_sets(const RunFixture& fixture, int tensor, int data) {
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, fixture.config.parallel.sequence_parallel, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, true);
    const JoinedDataset dataset(fixture.config.data.train, model->config.vocab_size);
    const StoreProvenance provenance = store_provenance(fixture.config, &world);
    EXPECT_FALSE(collect(session, fixture.config, *model, dataset, provenance).stopped);
    if (world.rank() == 0) finish_store(fixture.config.replay.store, provenance, world.size(), "{}");
    world.barrier();
  });
  RecordedSets sets;
  const ReplayStoreReader store(fixture.config.replay.store);
  for (const std::uint64_t id : store.sample_ids()) {
    const SampleRecords records = store.read(id);
    for (std::size_t t = 0; t < records.position.size(); ++t) {
      sets[{id, records.position[t]}] = {records.ids.begin() + records.id_begin[t],
                                         records.ids.begin() + records.id_begin[t + 1]};
    }
  }
  return sets;
}

TEST(Collection, LayoutsAndMicroBatchesRecordTheSameSets) {
  RandomDocumentsOptions options;
  options.count = 320;
  RunFixture fixture(options);
  split_data(fixture, 100);
  fixture.config.replay.tau = 0.6;
  fixture.config.replay.k_max = 60;
  RecordedSets first;
  for (const auto& [tensor, data, micro_batch] :
       {std::tuple{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 1, 64}, {2, 1, 4}, {1, 2, 2}, {2, 2, 1}, {2, 2, 16}}) {
    SCOPED_TRACE(fmt::format("tensor {} x data {}, micro-batch {}", tensor, data, micro_batch));
    fixture.config.train.micro_batch = micro_batch;
    fixture.config.parallel.sequence_parallel = tensor == 2 && data == 2;
    fixture.config.replay.store = fixture.folder / fmt::format("store-{}-{}-{}", tensor, data, micro_batch);
    const RecordedSets sets = collect_sets(fixture, tensor, data);
    if (first.empty()) first = sets;
    ASSERT_GT(sets.size(), 1000u);
    ASSERT_EQ(sets.size(), first.size());
    std::size_t differing = 0;  // rounding moves an id across a set's boundary now and then
    for (const auto& [place, ids] : sets) differing += ids == first.at(place) ? 0 : 1;
    EXPECT_LE(differing, sets.size() / 1000);
  }
}

}  // namespace
}  // namespace reprise
