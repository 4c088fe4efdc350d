#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "core/transfer.hpp"
#include "launcher/trainer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/launcher/run_steps.hpp"
#include "tests/launcher/step_oracle.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

/// One AdamW step on a layout against the oracle: loss, norm, every gradient, master weight and value.
void expect_oracle_step(RunFixture& fixture, const Sets& sets, int tensor, int data) {
  fixture.config.optimizer.eps = 1e-3;  // keeps the update smooth where a gradient is all rounding
  fixture.config.optimizer.weight_decay = 0.1;
  constexpr double kRate = 1e-2;
  StepOracle oracle{read_weights(fixture), {}, {}, {}, 0.0, 0.0, 0.0, 0};
  oracle_step(fixture, sets, kRate, oracle);
  const Outcome outcome = run_steps(fixture, tensor, data, 1, kRate);

  EXPECT_NEAR(outcome.metrics[0].loss, oracle.loss, 1e-6);
  EXPECT_NEAR(outcome.metrics[0].grad_norm, oracle.grad_norm, 1e-5 * oracle.grad_norm);
  EXPECT_FALSE(outcome.metrics[0].skipped);
  for (const auto& [name, table] : oracle.gradient) {
    Table gradient = outcome.exp_avg.at(name);
    for (double& value : gradient.data) value /= (1.0 - fixture.config.optimizer.betas[0]) * oracle.scale;
    expect_close(gradient, table, 2e-5, "gradient of " + name);
    expect_close(outcome.master.at(name), oracle.weights.at(name), 1e-6, "master of " + name);
    expect_close(outcome.values.at(name), oracle.weights.at(name), 1e-6, "value of " + name);
  }
}

class TrainStepTest : public testing::TestWithParam<std::tuple<int, int, int, bool>> {};

TEST_P(TrainStepTest, LossGradientsAndUpdatesAreThoseOfTheOracle) {
  const auto [tensor, data, zero_stage, sequence_parallel] = GetParam();
  RunFixture fixture(weighted_documents());
  fixture.config.optimizer.zero_stage = zero_stage;
  fixture.config.parallel.sequence_parallel = sequence_parallel;
  expect_oracle_step(fixture, {}, tensor, data);
}

TEST_P(TrainStepTest, MoClipTurnsAndMovesAsTheOracle) {
  const auto [tensor, data, zero_stage, sequence_parallel] = GetParam();
  RunFixture fixture(weighted_documents());
  fixture.config.optimizer.name = "moclip";
  fixture.config.optimizer.max_angle = 10.0;  // so that the second step turns every gradient
  fixture.config.optimizer.zero_stage = zero_stage;
  fixture.config.parallel.sequence_parallel = sequence_parallel;
  constexpr double kRate = 2e-2;

  StepOracle oracle{read_weights(fixture), {}, {}, {}, 0.0, 0.0, 0.0, 0};
  oracle_step(fixture, {}, kRate, oracle);
  const Tables first = oracle.exp_avg;
  oracle_step(fixture, {}, kRate, oracle);
  const Outcome outcome = run_steps(fixture, tensor, data, 2, kRate);

  EXPECT_NEAR(outcome.metrics[1].loss, oracle.loss, 1e-4);
  ASSERT_TRUE(outcome.metrics[1].angles.has_value());
  EXPECT_GT(outcome.metrics[1].angles->clipped_share, 0.5);
  for (const auto& [name, table] : oracle.exp_avg) {
    expect_close(outcome.exp_avg.at(name), table, 1e-3, "momentum of " + name);
    // A coordinate whose gradients are all rounding still makes a whole step, in a direction that nobody can foretell.
    const Table& before = first.at(name);
    const double noise = 1e-2 * largest(table);
    for (std::size_t i = 0; i < table.data.size(); ++i) {
      if (std::abs(table.data[i]) < noise || std::abs(before.data[i]) < noise) continue;
      ASSERT_NEAR(outcome.master.at(name).data[i], oracle.weights.at(name).data[i], 2e-2 * kRate) << name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, TrainStepTest,
    testing::Values(std::tuple{1, 1, 0, false}, std::tuple{1, 1, 1, false}, std::tuple{1, 1, 2, false},
                    std::tuple{2, 1, 0, false}, std::tuple{2, 1, 1, true}, std::tuple{2, 1, 2, false},
                    std::tuple{1, 2, 0, false}, std::tuple{1, 2, 1, false}, std::tuple{1, 2, 2, false},
                    std::tuple{2, 2, 0, false}, std::tuple{2, 2, 1, false}, std::tuple{2, 2, 2, true}),
    [](const auto& layout) {
      return fmt::format("Tensor{}Data{}Zero{}{}", std::get<0>(layout.param), std::get<1>(layout.param),
                         std::get<2>(layout.param), std::get<3>(layout.param) ? "SequenceParallel" : "");
    });

TEST(TrainStep, CandidatesOfTheStoreGiveTheOraclesStep) {
  for (const auto& [normalization, tile_tokens, negatives] :
       {std::tuple{"token", 1, 0}, {"token", 1, 12}, {"tile", 3, 0}, {"tile", 3, 12}, {"tile", 1000, 0}}) {
    RunFixture fixture(weighted_documents());
    fixture.config.replay.store = fixture.folder / "store";
    fixture.config.replay.normalization = normalization;
    fixture.config.replay.tile_tokens = tile_tokens;
    fixture.config.replay.negatives = negatives;
    fixture.config.data.pack = true;
    const Sets sets = make_store(fixture);
    for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}}) {
      SCOPED_TRACE(fmt::format("{}, tiles of {}, {} negatives, tensor {} x data {}", normalization, tile_tokens,
                               negatives, tensor, data));
      fixture.config.parallel.sequence_parallel = tensor == 2 && data == 2;
      expect_oracle_step(fixture, sets, tensor, data);
    }
  }
}

TEST(TrainStep, SamplesThatTheStoreLacksAreRefusedOrSkipped) {
  RunFixture fixture(weighted_documents());
  fixture.config.replay.store = fixture.folder / "store";
  fixture.config.replay.normalization = "tile";
  const StoreProvenance provenance = store_provenance(fixture.config);
  {  // half of the samples
    const IndexedDataset dataset(fixture.config.data.train.front());
    fixture.config.replay.store = fixture.folder / "whole";
    make_store(fixture);
    const ReplayStoreReader whole(fixture.folder / "whole");
    ReplayStoreWriter writer(fixture.folder / "store", 0, provenance);
    for (std::int64_t d = 0; d < 4; ++d) writer.append(whole.read(dataset.sample_id(d)));
    writer.commit(1);
    finish_store(fixture.folder / "store", provenance, 1, "{}");
    fixture.config.replay.store = fixture.folder / "store";
  }
  expect_error(ErrorKind::kStoreMismatch, {"4 of the 8 samples", "replay.missing"},
               [&] { (void)run_steps(fixture, 1, 1, 1, 1e-3); });
  fixture.config.replay.missing = "skip";
  std::int64_t targets = 0;
  for (std::size_t d = 0; d < 4; ++d) {
    const auto& mask = fixture.documents.options.masks[d];
    targets += std::count(mask.begin() + 1, mask.end(), 1);
  }
  EXPECT_EQ(run_steps(fixture, 1, 2, 1, 1e-3).metrics[0].tokens, targets);
}

TEST(TrainStep, BatchingChangesTheLossByRoundingOnly) {
  RunFixture fixture(weighted_documents());
  const Outcome reference = run_steps(fixture, 1, 1, 2, 1e-3);
  for (const auto& [micro_batch, pack, data] :
       {std::tuple{1, false, 1}, std::tuple{8, false, 1}, std::tuple{1, true, 2}, std::tuple{2, true, 4}}) {
    fixture.config.train.micro_batch = micro_batch;
    fixture.config.data.pack = pack;
    const Outcome other = run_steps(fixture, 1, data, 2, 1e-3);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(other.metrics[i].loss, reference.metrics[i].loss, 2e-6);
      EXPECT_EQ(other.metrics[i].tokens, reference.metrics[i].tokens);
      EXPECT_NEAR(other.metrics[i].grad_norm, reference.metrics[i].grad_norm, 1e-4 * reference.metrics[i].grad_norm);
    }
  }
}

TEST(TrainStep, NothingIsAllocatedOnceTheFirstStepsAreDone) {
  RunFixture fixture;
  fixture.config.data.shuffle = false;
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto model = load_model<float>(session, fixture.config.model.path, false);
  const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
  Trainer<float> trainer(session, fixture.config, *model);
  for (int i = 0; i < 2; ++i) trainer.step(training.prepare(i), 1e-3, false);
  const std::int64_t bytes = session.arena().high_water_bytes();
  for (int i = 2; i < 6; ++i) trainer.step(training.prepare(i), 1e-3, false);
  EXPECT_EQ(session.arena().high_water_bytes(), bytes);
}

TEST(TrainStep, SequenceLengthCutsAndSamplesWithoutTargetsDoNoWork) {
  RunFixture fixture;
  auto& documents = fixture.documents;
  std::fill(documents.options.masks[0].begin(), documents.options.masks[0].end(), std::uint8_t{0});
  make_dataset(fixture.folder / "data", documents.tokens, documents.options);
  fixture.config.data.sequence_length = 6;
  std::int64_t targets = 0;
  for (const auto& mask : documents.options.masks) {
    for (std::size_t i = 1; i < std::min<std::size_t>(mask.size(), 7); ++i) targets += mask[i];
  }
  const Outcome outcome = run_steps(fixture, 1, 2, 1, 1e-3);
  EXPECT_EQ(outcome.metrics[0].tokens, targets);
}

TEST(TrainStep, AllRanksSkipAStepWhoseGradientIsNotFinite) {
  RunFixture fixture(weighted_documents());
  for (const int bad_rank : {0, 3}) {
    run_ranks(4, [&](Communicator& world) {
      Session session(world, 2, false, 1);
      const auto model = load_model<float>(session, fixture.config.model.path, false);
      const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
      Trainer<float> trainer(session, fixture.config, *model);
      const auto values = [&] {
        trainer.settle();
        return to_host(session.stream(), model->parameters.values());
      };
      const std::vector<float> before = values();
      if (world.rank() == bad_rank) trainer.poison_gradient();
      const StepOutcome skipped = trainer.step(training.prepare(0), 1e-3, false);
      EXPECT_TRUE(skipped.metrics.skipped);
      EXPECT_EQ(trainer.optimizer().steps_taken(), 0);
      EXPECT_EQ(values(), before);
      EXPECT_FALSE(trainer.step(training.prepare(1), 1e-3, false).metrics.skipped);
      EXPECT_NE(values(), before);
    });
  }
}

TEST(TrainStep, HiddenStatesThatAreNotFiniteSkipTheStepOnAllRanks) {
  RunFixture fixture(weighted_documents());
  run_ranks(4, [&](Communicator& world) {
    Session session(world, 2, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false);
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    if (session.groups().dp_rank() == 1) {  // one replica has gone bad
      const std::int64_t norm = model->parameters.find("model.norm.weight");
      const float nan = std::numeric_limits<float>::quiet_NaN();
      copy_to_device<float>(session.stream(), {&nan, 1}, model->parameters.value(norm).flat().slice(0, 1));
    }
    const StepOutcome outcome = trainer.step(training.prepare(0), 1e-3, false);
    EXPECT_TRUE(outcome.metrics.skipped);
    EXPECT_FALSE(outcome.stop);
  });
}

TEST(TrainStep, AStopIsAgreedInTheSameStep) {
  const RunFixture fixture;
  run_ranks(2, [&](Communicator& world) {
    Session session(world, 2, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false);
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    EXPECT_FALSE(trainer.step(training.prepare(0), 1e-3, false).stop);
    EXPECT_TRUE(trainer.step(training.prepare(1), 1e-3, world.rank() == 1).stop);
  });
}

}  // namespace
}  // namespace reprise
