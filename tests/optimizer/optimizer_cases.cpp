#include "tests/optimizer/optimizer_cases.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/dtype.hpp"
#include "core/elementwise.hpp"
#include "core/transfer.hpp"
#include "tests/optimizer/toy_model.hpp"
#include "tests/optimizer/training_run.hpp"
#include "tests/support/device.hpp"

namespace reprise {

namespace {

OptimizerOptions options_of(const std::string& name, int zero_stage) {
  OptimizerOptions options;
  options.name = name;
  options.zero_stage = zero_stage;
  options.clip_norm = 0.5;
  options.weight_decay = 0.1;
  return options;
}

/// Many ranks on few cores are slow, and so is an emulated device: there a part of a long list will do.
[[nodiscard]] bool is_brief(const Communicator& world) {
  return world.size() > 4 || !test_stream().is_cpu();
}

/// The stages to try in the c-th case of a list.
[[nodiscard]] std::vector<int> stages_of(const Communicator& world, std::size_t c) {
  if (is_brief(world)) return {static_cast<int>(c % 3)};
  return {0, 1, 2};
}

void follows_the_oracle(Communicator& world, int tensor_size) {
  const std::vector<OptimizerOptions> cases = option_cases();
  for (std::size_t c = 0; c < cases.size(); c += is_brief(world) ? 4 : 1) {
    const OptimizerOptions& base = cases[c];
    RunSettings settings{.options = base, .tensor_size = tensor_size, .micro_batches = 2};
    if (is_brief(world)) settings.steps = 3;
    const ReferenceRun reference = run_reference(settings);
    for (const int stage : stages_of(world, c)) {
      settings.options.zero_stage = stage;
      expect_close_to_reference(run_training<float>(world, settings), reference, name_of(settings.options));
    }
  }
}

void follows_the_oracle_with_bfloat16_parameters(Communicator& world, int tensor_size) {
  for (const char* name : {"moclip", "adamw"}) {
    for (const int stage : stages_of(world, name[0] == 'm' ? 1 : 2)) {
      const RunSettings settings{.options = options_of(name, stage), .tensor_size = tensor_size, .micro_batches = 2};
      expect_close_to_reference(run_training<BFloat16>(world, settings), run_reference(settings, true),
                                name_of(settings.options));
    }
  }
}

void stages_give_the_same_bits(Communicator& world, int tensor_size) {
  for (const char* name : {"moclip", "adamw"}) {
    for (const int micro_batches : {1, 3}) {
      for (const bool exact : {false, true}) {
        if (is_brief(world) && (exact != (micro_batches == 3) || exact != (name[0] == 'm'))) continue;
        RunSettings settings{
            .options = options_of(name, 0), .tensor_size = tensor_size, .micro_batches = micro_batches, .exact = exact};
        if (is_brief(world)) settings.steps = 3;
        const WholeState replicated = run_training<float>(world, settings);
        settings.options.zero_stage = 1;
        const WholeState sharded = run_training<float>(world, settings);
        EXPECT_TRUE(sharded == replicated) << name << ", stages 0 and 1";
        settings.options.zero_stage = 2;
        const WholeState released = run_training<float>(world, settings);
        EXPECT_TRUE(run_training<float>(world, settings) == released) << name << " repeats its own bits";
        // Over several micro-batches stage 2 adds in another order: the same bits only where sums do not round.
        if (micro_batches == 1 || exact || world.size() == tensor_size) {
          EXPECT_TRUE(released == sharded) << name << ", stages 1 and 2, " << micro_batches << " micro-batches";
        }
      }
    }
  }
}

void reducing_ahead_changes_nothing(Communicator& world, int tensor_size) {
  for (const int micro_batches : {1, 2}) {
    for (const int stage : stages_of(world, static_cast<std::size_t>(micro_batches))) {
      RunSettings settings{
          .options = options_of("moclip", stage), .tensor_size = tensor_size, .micro_batches = micro_batches};
      settings.steps = 2;
      const WholeState together = run_training<float>(world, settings);
      settings.ahead = true;
      EXPECT_TRUE(run_training<float>(world, settings) == together) << "stage " << stage;
    }
  }
}

void thread_count_changes_nothing(Communicator& world, int tensor_size) {
  RunSettings settings{.options = options_of("moclip", 1), .tensor_size = tensor_size};
  const WholeState serial = run_training<float>(world, settings);
  settings.threads = 3;
  EXPECT_TRUE(run_training<float>(world, settings) == serial);
}

// ---- skipped steps -------------------------------------------------------------------------------------------------

struct Spoilt {
  std::string what;
  int parameter = -1;  ///< whose gradient is spoilt on the last rank
  float value = 0.0f;
  StepSums sums;
};

template <class T>
void expect_skip(Communicator& world, const RunSettings& settings, const Spoilt& spoilt) {
  SCOPED_TRACE(spoilt.what + ", " + name_of(settings.options));
  ToyTrainer<T> trainer(world, settings);
  (void)trainer.run_step(0);
  const WholeState before = trainer.gather();
  const Stream& stream = trainer.context().stream;
  const std::vector<T> values = to_host(stream, trainer.parameters().values());

  if (spoilt.parameter >= 0 && world.rank() == world.size() - 1) {
    const auto gradient = trainer.parameters().gradient(spoilt.parameter).flat();
    if (gradient.size > 0) fill(stream, gradient.slice(gradient.size - 1, 1), spoilt.value);
  }
  trainer.add_gradients(1);
  StepSums sums = trainer.sums();
  if (spoilt.parameter < 0) sums = trainer.groups().tp_rank() == 0 ? spoilt.sums : StepSums{};
  const StepResult result = trainer.optimizer().step(trainer.context(), kRunRate, sums);
  EXPECT_TRUE(result.skipped);
  EXPECT_EQ(trainer.optimizer().steps_taken(), 1);
  EXPECT_TRUE(trainer.gather() == before);
  const std::vector<T> values_after = to_host(stream, trainer.parameters().values());
  EXPECT_EQ(std::memcmp(values.data(), values_after.data(), values.size() * sizeof(T)), 0);
  for (const float g : to_host(stream, trainer.parameters().gradients())) EXPECT_EQ(g, 0.0f);

  // What follows is as if the step had never been: its bias correction too.
  (void)trainer.run_step(2);
  ToyTrainer<T> spared(world, settings);
  (void)spared.run_step(0);
  (void)spared.run_step(2);
  EXPECT_TRUE(trainer.gather() == spared.gather());
}

void skips_what_is_not_finite(Communicator& world, int tensor_size) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const double no_loss = std::numeric_limits<double>::quiet_NaN();
  std::vector<Spoilt> cases{{"NaN in a row-sharded matrix", 2, nan, {}},
                            {"Inf in a column-sharded matrix", 4, inf, {}},
                            {"NaN in a partial copy", 1, nan, {}},
                            {"-Inf in shared heads", 3, -inf, {}},
                            {"NaN in one rank's copy of a bias", 5, nan, {}},
                            {"no weight", -1, 0.0f, {}},
                            {"a loss that is not finite", -1, 0.0f, {.weight = 1.0, .weighted_loss = no_loss}},
                            {"a weight that is not finite", -1, 0.0f, {.weight = inf}},
                            {"an error", -1, 0.0f, {.weight = 1.0, .error = 1.0}}};
  const auto stride = static_cast<std::size_t>(is_brief(world) ? 2 : 1);  // odd and even numbers of ranks share them
  for (std::size_t c = static_cast<std::size_t>(world.size()) % stride; c < cases.size(); c += stride) {
    for (const int stage : stages_of(world, c)) {
      expect_skip<float>(
          world, {.options = options_of("moclip", stage), .tensor_size = tensor_size, .micro_batches = 2}, cases[c]);
    }
  }
  expect_skip<BFloat16>(world, {.options = options_of("adamw", 1), .tensor_size = tensor_size}, cases[0]);
}

void ignores_gradients_of_frozen_parameters(Communicator& world, int tensor_size) {
  for (const int stage : {0, 1, 2}) {
    const RunSettings settings{.options = options_of("moclip", stage), .tensor_size = tensor_size};
    ToyTrainer<float> trainer(world, settings), untouched(world, settings);
    const std::int64_t frozen = trainer.parameters().find("layers.1.frozen");
    const Stream& stream = trainer.context().stream;
    fill(stream, trainer.parameters().gradient(frozen).flat(), std::numeric_limits<float>::quiet_NaN());
    EXPECT_FALSE(trainer.run_step(0).skipped);
    (void)untouched.run_step(0);
    EXPECT_TRUE(trainer.gather() == untouched.gather());
    const std::vector<float> value = to_host(stream, trainer.parameters().value(frozen).flat());
    for (std::int64_t i = 0; i < trainer.parameters().spec(frozen).size(); ++i) {
      EXPECT_EQ(value[static_cast<std::size_t>(i)],
                toy_weight(static_cast<std::size_t>(frozen), global_element(trainer.parameters().spec(frozen), i)));
    }
  }
}

// ---- collectives ---------------------------------------------------------------------------------------------------

void exchanges_scalars_once(Communicator& world, int tensor_size) {
  for (const auto scope : {AngleScope::kTensor, AngleScope::kLayer, AngleScope::kGlobal}) {
    for (const int stage : stages_of(world, static_cast<std::size_t>(scope))) {
      RunSettings settings{.options = options_of("moclip", stage), .tensor_size = tensor_size};
      settings.options.angle_scope = scope;
      ToyTrainer<float> trainer(world, settings);
      (void)trainer.run_step(0);
      trainer.add_gradients(1);
      world.reset_counts();
      const auto& dp = *trainer.groups().dp;
      const auto gathers = dp.count(Collective::kAllGather).calls, sums = dp.count(Collective::kReduceScatter).calls;
      (void)trainer.optimizer().step(trainer.context(), kRunRate, trainer.sums());
      const auto groups = static_cast<std::int64_t>(trainer.optimizer().group_names().size());
      const std::int64_t bytes = 8 * (4 * groups + 8) * (world.size() - 1);
      EXPECT_EQ(world.count(Collective::kAllGather).calls, 1);
      EXPECT_EQ(world.count(Collective::kAllGather).bytes, bytes);
      for (const auto verb : {Collective::kAllReduce, Collective::kReduceScatter, Collective::kAllToAll,
                              Collective::kBroadcast, Collective::kBarrier}) {
        EXPECT_EQ(world.count(verb).calls, 0) << name_of(verb);
      }
      const auto buckets = static_cast<std::int64_t>(trainer.parameters().layout().buckets.size());
      EXPECT_EQ(dp.count(Collective::kReduceScatter).calls, sums);
      EXPECT_EQ(dp.count(Collective::kAllGather).calls - gathers, stage == 0 || dp.size() == 1 ? 0 : buckets);
    }
  }
}

void reduces_as_often_as_its_stage_says(Communicator& world, int tensor_size) {
  constexpr int kMicroBatches = 3;
  for (const int stage : {0, 1, 2}) {
    ToyTrainer<float> trainer(
        world, {.options = options_of("moclip", stage), .tensor_size = tensor_size, .micro_batches = kMicroBatches});
    auto& dp = *trainer.groups().dp;
    auto& tp = *trainer.groups().tp;
    dp.reset_counts();
    tp.reset_counts();
    trainer.add_gradients(0);
    std::int64_t plain = 0, copies = 0;
    for (const Bucket& bucket : trainer.parameters().layout().buckets) (bucket.sum_over_tp ? copies : plain) += 1;
    const bool several = dp.size() > 1;
    const std::int64_t scatters = stage == 0 ? 0 : stage == 1 ? plain + copies : kMicroBatches * plain + copies;
    EXPECT_EQ(dp.count(Collective::kReduceScatter).calls, several ? scatters : 0);
    EXPECT_EQ(dp.count(Collective::kAllReduce).calls, several && stage == 0 ? plain + copies : 0);
    EXPECT_EQ(tp.count(Collective::kAllReduce).calls, tp.size() > 1 ? 1 : 0) << "copies are summed once a step";
  }
}

// ---- pieces --------------------------------------------------------------------------------------------------------

void pieces_load_into_every_other_stage(Communicator& world, int tensor_size) {
  for (const int from : {0, 1, 2}) {
    for (const int to : {0, 1, 2}) {
      if (is_brief(world) && to != (from + 1) % 3) continue;
      ToyTrainer<BFloat16> writer(world, {.options = options_of("moclip", from), .tensor_size = tensor_size});
      for (int step = 0; step < 3; ++step) (void)writer.run_step(step);
      const WholeState written = writer.gather();

      ToyTrainer<BFloat16> reader(world, {.options = options_of("moclip", to), .tensor_size = tensor_size});
      for (const OwnedPiece& piece : reader.optimizer().held_pieces()) {
        const ParameterSpec& spec = reader.parameters().spec(piece.parameter);
        const auto p = static_cast<std::size_t>(piece.parameter);
        std::vector<float> master, exp_avg, exp_avg_sq;
        for (std::int64_t i = 0; i < piece.local.size(); ++i) {
          const auto e = static_cast<std::size_t>(global_element(spec, piece.local.begin + i));
          master.push_back(static_cast<float>(written.weight[p][e]));
          exp_avg.push_back(static_cast<float>(written.exp_avg[p][e]));
          exp_avg_sq.push_back(static_cast<float>(written.exp_avg_sq[p][e]));
        }
        copy_to_device<float>(reader.context().stream, master, piece.master);
        copy_to_device<float>(reader.context().stream, exp_avg, piece.exp_avg);
        copy_to_device<float>(reader.context().stream, exp_avg_sq, piece.exp_avg_sq);
      }
      reader.optimizer().publish_parameters(reader.context());
      reader.optimizer().set_steps_taken(writer.optimizer().steps_taken());
      const WholeState loaded = reader.gather();
      EXPECT_TRUE(loaded == written);
      EXPECT_EQ(loaded.wrong_values, 0);
      (void)writer.run_step(3);
      (void)reader.run_step(3);
      EXPECT_TRUE(reader.gather() == writer.gather()) << "goes on with the same bits, " << from << " -> " << to;
    }
  }
}

void held_pieces_are_what_the_stage_keeps(Communicator& world, int tensor_size) {
  for (const int stage : {0, 1, 2}) {
    ToyTrainer<float> trainer(world, {.options = options_of("adamw", stage), .tensor_size = tensor_size});
    std::int64_t held = 0, owned = 0, trained = 0, counted = 0;
    for (const OwnedPiece& piece : trainer.optimizer().held_pieces()) held += piece.local.size();
    for (const OwnedPiece& piece : trainer.optimizer().owned_pieces()) owned += piece.local.size();
    for (const ParameterSpec& spec : trainer.parameters().specs()) {
      if (!spec.frozen) trained += spec.size();
      if (!spec.frozen && spec.counted) counted += spec.size();
    }
    std::int64_t over_dp[] = {held, owned};
    trainer.groups().dp->all_reduce(Stream(CpuStream{}), VectorView<std::int64_t>(over_dp, 2));
    EXPECT_EQ(stage == 0 ? held : over_dp[0], trained);
    EXPECT_EQ(over_dp[1], counted);
    EXPECT_GE(trainer.optimizer().state_bytes(), 8 * held);
  }
}

void master_weights_follow_the_parameters(Communicator& world, int tensor_size) {
  ToyTrainer<BFloat16> trainer(world, {.options = options_of("moclip", 1), .tensor_size = tensor_size});
  fill(trainer.context().stream, trainer.parameters().values(), 0.5f);
  trainer.optimizer().set_master_from_parameters();
  for (const OwnedPiece& piece : trainer.optimizer().held_pieces()) {
    for (const float weight : to_host(trainer.context().stream, piece.master)) EXPECT_EQ(weight, 0.5f);
  }
}

}  // namespace

const std::vector<OptimizerCase>& optimizer_cases() {
  static const std::vector<OptimizerCase> cases{
      {"FollowsTheOracle", follows_the_oracle},
      {"FollowsTheOracleWithBFloat16Parameters", follows_the_oracle_with_bfloat16_parameters},
      {"StagesGiveTheSameBits", stages_give_the_same_bits},
      {"ReducingAheadChangesNothing", reducing_ahead_changes_nothing},
      {"ThreadCountChangesNothing", thread_count_changes_nothing},
      {"SkipsWhatIsNotFinite", skips_what_is_not_finite},
      {"IgnoresGradientsOfFrozenParameters", ignores_gradients_of_frozen_parameters},
      {"ExchangesScalarsOnce", exchanges_scalars_once},
      {"ReducesAsOftenAsItsStageSays", reduces_as_often_as_its_stage_says},
      {"PiecesLoadIntoEveryOtherStage", pieces_load_into_every_other_stage},
      {"HeldPiecesAreWhatTheStageKeeps", held_pieces_are_what_the_stage_keeps},
      {"MasterWeightsFollowTheParameters", master_weights_follow_the_parameters},
  };
  return cases;
}

void run_on_every_grid(const OptimizerCase& test, Communicator& world) {
  for (int tensor_size = world.size() > 4 ? 4 : 1; tensor_size <= world.size(); ++tensor_size) {
    if (world.size() % tensor_size != 0) continue;
    if (!test_stream().is_cpu() && world.size() > 2 && tensor_size != world.size() / 2) continue;  // that is slow
    SCOPED_TRACE("tensor " + std::to_string(tensor_size) + " of " + std::to_string(world.size()) + " ranks");
    test.run(world, tensor_size);
  }
}

}  // namespace reprise
