#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "core/elementwise.hpp"
#include "core/transfer.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/self_communicator.hpp"
#include "tests/optimizer/toy_model.hpp"
#include "tests/optimizer/training_run.hpp"
#include "tests/support/device.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

TEST(Options, BadValuesAreUsageErrorsWithTheLegalOnes) {
  const auto expect_usage = [](const std::vector<std::string>& parts, const auto& spoil) {
    RunSettings settings;
    spoil(settings.options);
    expect_error(ErrorKind::kUsage, parts, [&] {
      const auto world = make_self_communicator();
      const ToyTrainer<float> trainer(*world, settings);
    });
  };
  expect_usage({"optimizer.name", "sgd", "moclip", "adamw"}, [](auto& o) { o.name = "sgd"; });
  expect_usage({"optimizer.betas", "[0, 1)"}, [](auto& o) { o.beta1 = 1.0; });
  expect_usage({"optimizer.betas", "[0, 1)"}, [](auto& o) { o.beta2 = -0.1; });
  expect_usage({"optimizer.eps", "> 0"}, [](auto& o) {
    o.name = "adamw";
    o.eps = 0.0;
  });
  expect_usage({"optimizer.weight_decay", ">= 0"}, [](auto& o) { o.weight_decay = -1.0; });
  expect_usage({"optimizer.clip_norm", ">= 0"},
               [](auto& o) { o.clip_norm = std::numeric_limits<double>::quiet_NaN(); });
  for (const double angle : {0.0, -1.0, 91.0, 179.0, 360.0}) {
    expect_usage({"optimizer.max_angle", "(0, 90]", "180"}, [&](auto& o) { o.max_angle = angle; });
  }
  expect_usage({"optimizer.zero_stage", "0, 1 or 2"}, [](auto& o) { o.zero_stage = 3; });
  expect_error(ErrorKind::kUsage, {"angle_scope", "row", "tensor", "layer", "global"},
               [] { (void)parse_angle_scope("row"); });
  expect_error(ErrorKind::kUsage, {"obtuse", "flip", "keep", "drop", "project", "reflect", "rotate"},
               [] { (void)parse_obtuse("flip"); });
  EXPECT_EQ(parse_angle_scope("layer"), AngleScope::kLayer);
  EXPECT_EQ(parse_obtuse("rotate"), Obtuse::kRotate);
}

TEST(Options, KeysOfTheOtherOptimizerAreNotJudged) {
  RunSettings settings;
  settings.options.name = "adamw";
  settings.options.max_angle = 0.0;
  (void)run_training_on_threads<float>(1, settings);
  settings.options.name = "moclip";
  settings.options.max_angle = 45.0;
  settings.options.eps = 0.0;
  (void)run_training_on_threads<float>(1, settings);
}

TEST(Step, NeedsReducedGradientsAndASoundRate) {
  const auto world = make_self_communicator();
  ToyTrainer<float> trainer(*world, {});
  expect_error(ErrorKind::kInternal, {"reduce_gradients"},
               [&] { (void)trainer.optimizer().step(trainer.context(), kRunRate, trainer.sums()); });
  trainer.add_gradients(0);
  expect_error(ErrorKind::kInternal, {"call step first"},
               [&] { trainer.optimizer().reduce_gradients(trainer.context(), true); });
  for (const double lr : {-1.0, std::numeric_limits<double>::quiet_NaN()}) {
    expect_error(ErrorKind::kUsage, {"learning rate"},
                 [&] { (void)trainer.optimizer().step(trainer.context(), lr, trainer.sums()); });
  }
  EXPECT_FALSE(trainer.optimizer().step(trainer.context(), kRunRate, trainer.sums()).skipped);
}

// A stream of its own reduces buckets; where streams are late it is the waits that make this right.
TEST(Step, BucketsMayBeReducedOnAnotherStream) {
  const auto train = [](const Stream* other) {
    const auto world = make_self_communicator();
    ToyTrainer<float> trainer(*world, {});
    for (int step = 0; step < 2; ++step) {
      if (other != nullptr) {
        add_toy_gradients(trainer.context(), trainer.parameters(), step, 0, kParts, false);
        Arena arena(*other);
        const Context beside{*other, trainer.groups(), arena};
        synchronize(trainer.context().stream);
        trainer.optimizer().reduce_ahead(beside, 0);
        synchronize(*other);
        trainer.optimizer().reduce_gradients(trainer.context(), true);
      } else {
        trainer.add_gradients(step);
      }
      EXPECT_FALSE(trainer.optimizer().step(trainer.context(), kRunRate, trainer.sums()).skipped);
    }
    return trainer.gather();
  };
  const SimdLevel highest = simd_level();
  const WholeState together = train(nullptr);
  on_every_stream([&](const Stream& stream) {
    if (simd_level() != highest) return;  // another one adds in another order
    EXPECT_TRUE(train(&stream) == together);
  });
}

TEST(Step, ABucketIsReducedAheadOnceAndOnlyBeforeTheLast) {
  const auto world = make_self_communicator();
  RunSettings settings;
  ToyTrainer<float> trainer(*world, settings);
  trainer.optimizer().reduce_ahead(trainer.context(), 0);
  for (const std::int64_t bucket : {0, -1, 99}) {
    expect_error(ErrorKind::kInternal, {"ahead"}, [&] { trainer.optimizer().reduce_ahead(trainer.context(), bucket); });
  }
  trainer.optimizer().reduce_gradients(trainer.context(), true);
  expect_error(ErrorKind::kInternal, {"call step first"},
               [&] { trainer.optimizer().reduce_ahead(trainer.context(), 1); });
}

TEST(Step, MovesNoCoordinateFurtherThanARightAngle) {
  RunSettings settings;
  settings.options.weight_decay = 0.1;
  const auto world = make_self_communicator();
  ToyTrainer<float> trainer(*world, settings);
  for (int step = 0; step < 6; ++step) {
    const WholeState before = trainer.gather();
    (void)trainer.run_step(step);
    const WholeState after = trainer.gather();
    for (std::size_t t = 0; t < before.weight.size(); ++t) {
      const double decay = toy_tensors()[t].decay ? settings.options.weight_decay : 0.0;
      for (std::size_t i = 0; i < before.weight[t].size(); ++i) {
        const double bound = kRunRate * (std::numbers::pi / 2.0 + decay * std::abs(before.weight[t][i]));
        EXPECT_LE(std::abs(after.weight[t][i] - before.weight[t][i]), bound * (1.0 + 1e-5));
      }
    }
  }
}

/// g' = (m_after - beta1 m_before) / (1 - beta1) of one tensor.
std::vector<double> turned_gradient(const std::vector<double>& before, const std::vector<double>& after, double beta1) {
  std::vector<double> result;
  for (std::size_t i = 0; i < before.size(); ++i) result.push_back((after[i] - beta1 * before[i]) / (1.0 - beta1));
  return result;
}

TEST(Step, TheMomentsThatComeOutHoldTheAngleCap) {
  for (const double max_angle : {20.0, 45.0, 70.0}) {
    RunSettings settings;
    settings.options.max_angle = max_angle;
    const auto world = make_self_communicator();
    ToyTrainer<float> trainer(*world, settings);
    (void)trainer.run_step(0);
    double widest = 0.0;
    for (int step = 1; step < 7; ++step) {
      const WholeState before = trainer.gather();
      const StepResult result = trainer.run_step(step);
      widest = std::max(widest, result.angles.max);
      const WholeState after = trainer.gather();
      for (std::size_t t = 0; t < before.exp_avg.size(); ++t) {
        if (toy_tensors()[t].frozen) continue;
        const auto g = turned_gradient(before.exp_avg[t], after.exp_avg[t], settings.options.beta1);
        const double angle = angle_between(g, before.exp_avg[t]);
        EXPECT_LE(std::min(angle, 180.0 - angle), max_angle + 0.01) << toy_tensors()[t].name << " step " << step;
      }
    }
    EXPECT_GT(widest, 90.0) << "the cap was put to the test";
  }
}

TEST(Step, AnAngleOf180IsNoCap) {
  RunSettings capped;
  capped.options.max_angle = 180.0;
  for (const Obtuse obtuse : {Obtuse::kDrop, Obtuse::kRotate}) {
    RunSettings other = capped;
    other.options.obtuse = obtuse;
    other.options.angle_scope = AngleScope::kGlobal;
    const WholeState a = run_training_on_threads<float>(1, capped), b = run_training_on_threads<float>(1, other);
    EXPECT_TRUE(a == b);
    for (const StepResult& result : a.results) EXPECT_EQ(result.angles.clipped_share, 0.0);
    EXPECT_GT(a.results[1].angles.groups, 0) << "angles are still measured";
  }
}

TEST(Step, TheFirstStepKeepsItsGradient) {
  RunSettings settings;
  settings.steps = 1;
  settings.options.obtuse = Obtuse::kDrop;
  const WholeState first = run_training_on_threads<float>(2, settings);
  settings.options.max_angle = 180.0;
  EXPECT_TRUE(run_training_on_threads<float>(2, settings) == first);
  EXPECT_EQ(first.results[0].angles.groups, 0);
}

// Larger than a chunk, so that several threads take part in the sums and in the update.
TEST(Step, ChunksAreSummedInOrderWhateverTheThreads) {
  const SimdLevel highest = simd_level();
  const auto train = [](const Stream& stream) {
    const auto world = make_self_communicator();
    const ProcessGroups groups = ProcessGroups::make(*world, 1);
    Arena arena(stream);
    const Context context{stream, groups, arena};
    ParameterSet<float> parameters;
    for (const char* name : {"a", "b"}) {
      parameters.add(
          {.name = name, .layer = "l", .global_rows = 500, .global_cols = 201, .row_end = 500, .col_end = 201});
    }
    parameters.allocate(stream, 1 << 16, 1);
    const auto optimizer = make_optimizer(context, {}, parameters);
    for (int step = 0; step < 3; ++step) {
      for (std::int64_t p = 0; p < 2; ++p) {
        std::vector<float> gradient;
        for (std::int64_t i = p * 500 * 201; i < (p + 1) * 500 * 201; ++i) {
          gradient.push_back(static_cast<float>((i * 7919 + step * 31) % 1009) - 504.0f);
        }
        copy_to_device<float>(stream, gradient, parameters.gradient(p).flat());
      }
      optimizer->reduce_gradients(context, true);
      (void)optimizer->step(context, kRunRate, {.weight = 10.0});
    }
    return to_host(stream, parameters.values());
  };
  const auto values = train(test_stream());
  on_every_stream([&](const Stream& stream) {
    if (simd_level() != highest) return;  // another one adds in another order
    EXPECT_EQ(train(stream), values);
  });
}

TEST(Step, EmptyModelsAndEmptyRanksTakePart) {
  run_device_ranks(2, [](Communicator& world) {
    const ProcessGroups groups = ProcessGroups::make(world, 2);
    const Stream& stream = test_stream();
    Arena arena(stream);
    const Context context{stream, groups, arena};
    ParameterSet<float> parameters;  // rank 1 holds no row
    parameters.add({.name = "w",
                    .layer = "l",
                    .global_rows = 1,
                    .global_cols = 3,
                    .row_begin = groups.tp_rank(),
                    .row_end = 1,
                    .col_end = 3});
    parameters.allocate(stream, 100, 1);
    const auto optimizer = make_optimizer(context, {}, parameters);
    fill(stream, parameters.gradient(0).flat(), 2.0f);
    optimizer->reduce_gradients(context, true);
    const StepResult result = optimizer->step(context, kRunRate, {.weight = groups.tp_rank() == 0 ? 1.0 : 0.0});
    EXPECT_FALSE(result.skipped);
    EXPECT_NEAR(result.grad_norm, std::sqrt(12.0), 1e-12);
    for (const float w : to_host(stream, parameters.value(0).flat()))
      EXPECT_NEAR(w, -kRunRate * std::numbers::pi / 4.0, 5e-9);
  });
}

}  // namespace

}  // namespace reprise
