#include <gtest/gtest.h>

#include "tests/launcher/run_steps.hpp"
#include "tests/launcher/step_oracle.hpp"
#include "tests/support/expect_error.hpp"

// General data under full cross-entropy beside recorded sets in one batch.

namespace reprise {
namespace {

/// A quarter of a batch of 8 from `held_out`, in the order of the files.
struct MixingFixture : RunFixture {
  explicit MixingFixture(const std::string& normalization) {
    config.optimizer.clip_norm = 0.0;
    config.data.shuffle = false;
    config.replay.normalization = normalization;
    config.replay.tile_tokens = 3;
    config.replay.negatives = normalization == "full" ? 0 : 8;
    config.replay.store = folder / "store";
    make_store(*this);
  }
  void mix() {
    config.data.general = {folder / "held_out"};
    config.data.general_ratio = 0.25;
  }
};

/// The step of a batch is the mean of its parts' steps, by their targets: gradients are sums, and all weights are 1.
void expect_mixture(const Outcome& mixed, const Outcome& domain, const Outcome& general) {
  const auto domain_tokens = static_cast<double>(domain.metrics[0].tokens);
  const auto general_tokens = static_cast<double>(general.metrics[0].tokens);
  const double all = domain_tokens + general_tokens;
  EXPECT_EQ(mixed.metrics[0].tokens, domain.metrics[0].tokens + general.metrics[0].tokens);
  EXPECT_NEAR(mixed.metrics[0].loss,
              (domain_tokens * domain.metrics[0].loss + general_tokens * general.metrics[0].loss) / all, 2e-6);
  for (const auto& [name, table] : domain.exp_avg) {
    Table expected = table;
    const Table& other = general.exp_avg.at(name);
    for (std::size_t i = 0; i < expected.data.size(); ++i) {
      expected.data[i] = (domain_tokens * table.data[i] + general_tokens * other.data[i]) / all;
    }
    expect_close(mixed.exp_avg.at(name), expected, 2e-5, "gradient of " + name);
  }
}

class GeneralMixTest : public testing::TestWithParam<std::string> {};

TEST_P(GeneralMixTest, BothPartsEnterWithTheirOwnLossAndOneNormalisation) {
  MixingFixture fixture(GetParam());
  fixture.config.train.global_batch = 6;
  const Outcome domain = run_steps(fixture, 1, 1, 1, 1e-3);

  RunFixture general_fixture;
  general_fixture.config.optimizer.clip_norm = 0.0;
  general_fixture.config.data.shuffle = false;
  general_fixture.config.data.train = {general_fixture.folder / "held_out"};
  general_fixture.config.train.global_batch = 2;
  const Outcome general = run_steps(general_fixture, 1, 1, 1, 1e-3);

  fixture.config.train.global_batch = 8;
  fixture.mix();
  for (const auto& [tensor, data, pack] :
       {std::tuple{1, 1, false}, {2, 1, false}, {1, 2, true}, {2, 2, false}, {1, 4, false}}) {
    SCOPED_TRACE(fmt::format("tensor {} x data {}, pack {}", tensor, data, pack));
    fixture.config.data.pack = pack;
    expect_mixture(run_steps(fixture, tensor, data, 1, 1e-3), domain, general);
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, GeneralMixTest, testing::Values("full", "token", "tile"),
                         [](const auto& head) { return head.param; });

TEST(GeneralMix, EveryRankHasTheSameMicroBatchesOfEachKind) {
  MixingFixture fixture("tile");
  fixture.mix();
  fixture.config.data.general_ratio = 0.3;  // 2 or 3 of 8
  fixture.config.train.micro_batch = 1;
  std::vector<std::vector<bool>> kinds(4);
  std::vector<std::int64_t> samples(4);
  run_ranks(4, [&](Communicator& world) {
    Session session(world, 1, false, 1);
    const TrainingData training(fixture.config, fixture.model.vocab_size, session.groups());
    const auto rank = static_cast<std::size_t>(world.rank());
    for (int step = 0; step < 10; ++step) {
      for (const PreparedMicroBatch& micro : training.prepare(step).micro_batches) {
        kinds[rank].push_back(micro.general);
        samples[rank] += micro.batch.num_samples();
      }
    }
  });
  for (std::size_t rank = 1; rank < 4; ++rank) EXPECT_EQ(kinds[rank], kinds[0]);
  // 80 samples, and where a kind does not divide over the ranks the odd ones fall to different ranks.
  EXPECT_EQ(samples[0] + samples[1] + samples[2] + samples[3], 80);
  for (const std::int64_t count : samples) EXPECT_NEAR(static_cast<double>(count), 20.0, 5.0);
}

TEST(GeneralMix, ItsDataIsPartOfTheRunNotOfTheStore) {
  MixingFixture fixture("tile");
  fixture.mix();
  const auto world = make_self_communicator();
  Session session(*world, 1, false, 1);
  const TrainingData training(fixture.config, fixture.model.vocab_size, session.groups());
  EXPECT_EQ(training.provenance().at("general"), dataset_fingerprint(fixture.folder / "held_out"));
  EXPECT_EQ(store_provenance(fixture.config).count("general"), 0u);
  EXPECT_EQ(training.general_statistics().at(0).samples, 5);
  fixture.config.train.epochs = 3.0;  // of the 8 documents of data.train at 6 a step
  EXPECT_EQ(TrainingData(fixture.config, fixture.model.vocab_size, session.groups()).total_steps(), 4);
}

}  // namespace
}  // namespace reprise
