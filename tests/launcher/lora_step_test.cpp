#include <gtest/gtest.h>

#include <algorithm>

#include "tests/launcher/run_steps.hpp"

// Steps over adapters alone: what trains, what stays, and that no layout changes it.

namespace reprise {
namespace {

struct AdaptedRun : RunFixture {
  explicit AdaptedRun(const std::string& optimizer) : RunFixture(weighted_documents()) {
    config.lora.rank = 3;
    config.optimizer.name = optimizer;
    config.optimizer.weight_decay = 0.1;
  }
};

TEST(LoraStep, EveryLayoutTrainsTheSameAdapters) {
  for (const char* optimizer : {"adamw", "moclip"}) {
    AdaptedRun fixture(optimizer);
    const Outcome one = run_steps(fixture, 1, 1, 3, 1e-2);
    EXPECT_EQ(one.master.size(), 2u * 7u * 2u);
    EXPECT_LT(one.metrics[2].loss, one.metrics[0].loss);
    // A moves from the second step on, when B is no longer zero.
    for (const auto& [name, moment] : one.exp_avg) EXPECT_GT(largest(moment), 0.0) << name;
    for (const auto& [tensor, data] : {std::pair(2, 1), std::pair(4, 1), std::pair(2, 2), std::pair(1, 4)}) {
      for (const bool sequence_parallel : {false, true}) {
        for (const std::int64_t stage : {0, 2}) {
          if (sequence_parallel && (tensor == 1 || stage == 0)) continue;
          SCOPED_TRACE(fmt::format("{} tensor {} data {} stage {}", optimizer, tensor, data, stage));
          fixture.config.parallel.sequence_parallel = sequence_parallel;
          fixture.config.optimizer.zero_stage = stage;
          const Outcome other = run_steps(fixture, tensor, data, 3, 1e-2);
          for (const auto& [name, master] : one.master) expect_close(other.master.at(name), master, 2e-4, name);
          EXPECT_NEAR(other.metrics[2].loss, one.metrics[2].loss, 1e-5);
          EXPECT_NEAR(other.metrics[2].grad_norm, one.metrics[2].grad_norm, 1e-4 * one.metrics[2].grad_norm);
        }
      }
    }
  }
}

TEST(LoraStep, BeginsAsTheBaseAndLeavesItAsItIs) {
  AdaptedRun fixture("moclip");
  const double adapted = run_steps(fixture, 2, 1, 1, 1e-2).metrics[0].loss;
  fixture.config.lora.rank = 0;
  EXPECT_EQ(adapted, run_steps(fixture, 2, 1, 1, 1e-2).metrics[0].loss);

  fixture.config.lora.rank = 3;
  run_ranks(2, [&](Communicator& world) {
    Session session(world, 2, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false, 0, trained_adapter(fixture.config));
    const std::vector<float> before = to_host(session.stream(), model->parameters.values());
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    for (int i = 0; i < 2; ++i) (void)trainer.step(training.prepare(i), 1e-2, false);
    trainer.settle();
    EXPECT_EQ(to_host(session.stream(), model->parameters.values()), before);
    EXPECT_FALSE(model->parameters.has_gradients());
    // Moments of the adapters alone, and an angle for each of them.
    const std::int64_t elements = model->adapters.layout().size;
    EXPECT_LT(trainer.optimizer().state_bytes(), 3 * 4 * elements + (1 << 16));
    EXPECT_EQ(static_cast<std::int64_t>(trainer.optimizer().group_names().size()), model->adapters.count());
  });
}

TEST(LoraStep, AnglesOfALayerAreThoseOfItsAdapters) {
  AdaptedRun fixture("moclip");
  fixture.config.optimizer.angle_scope = "layer";
  fixture.config.lora.targets = {"q_proj", "down_proj"};
  run_ranks(1, [&](Communicator& world) {
    Session session(world, 1, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false, 0, trained_adapter(fixture.config));
    Trainer<float> trainer(session, fixture.config, *model);
    EXPECT_EQ(trainer.optimizer().group_names(), (std::vector<std::string>{"layers.0", "layers.1"}));
    EXPECT_EQ(model->adapters.count(), 2 * 2 * 2);
  });
}

TEST(LoraStep, BFloat16AdaptersHaveAFloat32Master) {
  const AdaptedRun fixture("moclip");
  run_ranks(2, [&](Communicator& world) {
    Session session(world, 2, true, 1);
    const auto model =
        load_model<BFloat16>(session, fixture.config.model.path, false, 0, trained_adapter(fixture.config));
    RunConfig config = fixture.config;
    config.parallel.sequence_parallel = true;
    const TrainingData training(config, model->config.vocab_size, session.groups());
    Trainer<BFloat16> trainer(session, config, *model);
    // Steps far below what bfloat16 resolves at A's size still add up.
    for (int i = 0; i < 4; ++i) (void)trainer.step(training.prepare(i), 1e-5, false);
    trainer.settle();
    double moved = 0.0;
    for (const OwnedPiece& piece : trainer.optimizer().owned_pieces()) {
      const ParameterSpec& spec = model->adapters.spec(piece.parameter);
      if (!spec.name.ends_with("lora_B.weight")) continue;
      for (const float x : to_host(session.stream(), piece.master)) moved = std::max(moved, std::abs(double{x}));
    }
    EXPECT_GT(moved, 1e-5);
    EXPECT_LT(moved, 4e-4);
  });
}

}  // namespace
}  // namespace reprise
