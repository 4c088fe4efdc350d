#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "launcher/check_report.hpp"
#include "launcher/trainer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/launcher/recorded_store.hpp"
#include "tests/support/run_fixture.hpp"

// The estimates of `check` beside one training step that is really made.

namespace reprise {
namespace {

struct Layout {
  std::int64_t tensor = 1, data = 1, zero_stage = 1;
  bool sequence_parallel = false, qwen3 = false;
  std::string recompute = "none", normalization = "tile";
  std::string dtype = "float32";
};

std::string name_of_layout(const testing::TestParamInfo<Layout>& info) {
  const Layout& layout = info.param;
  return fmt::format("tp{}dp{}zero{}{}{}{}{}{}", layout.tensor, layout.data, layout.zero_stage,
                     layout.sequence_parallel ? "sp" : "", layout.recompute, layout.qwen3 ? "qwen3" : "",
                     layout.normalization, layout.dtype);
}

/// Long rows, so that what grows with tokens outweighs what does not.
RunConfig make_run(RunFixture& fixture, const Layout& layout) {
  if (layout.qwen3) {
    fixture.model.model_type = "qwen3";
    fixture.model.qk_norm = true;
    fixture.model.num_kv_heads = 1;
    fixture.model.tie_word_embeddings = true;
    make_model_folder(fixture.config.model.path, fixture.model);
  }
  RunConfig config = fixture.config;
  config.data.sequence_length = 128;
  config.model.dtype = layout.dtype;
  config.parallel.tensor = layout.tensor;
  config.parallel.sequence_parallel = layout.sequence_parallel;
  config.train.recompute = layout.recompute;
  config.train.steps = 1;
  config.train.probe_every = 0;
  config.optimizer.name = "moclip";
  config.optimizer.zero_stage = layout.zero_stage;
  config.replay.normalization = layout.normalization;
  if (layout.normalization != "full") {
    config.replay.store = fixture.folder / "store";
    config.replay.k_max = 8;
    write_store(config);
  }
  return config;
}

using Counts = std::map<std::pair<std::string, Collective>, CollectiveCount>;

/// What rank 0 really did in one step.
struct Made {
  Counts counts;
  std::int64_t parameter_bytes = 0, optimizer_bytes = 0, arena_bytes = 0, store_bytes = 0;
};

void count_group(Counts& counts, const std::string& name, const Communicator& group) {
  for (std::size_t verb = 0; verb < kNumCollectives; ++verb) {
    const auto count = group.count(static_cast<Collective>(verb));
    if (count.bytes > 0) counts[{name, static_cast<Collective>(verb)}] = count;
  }
}

template <class T>
Made make_step(const RunConfig& config, const Layout& layout) {
  Made made;
  run_ranks(static_cast<int>(layout.tensor * layout.data), [&](Communicator& world) {
    Session session(world, layout.tensor, layout.sequence_parallel, 1);
    const auto model = load_model<T>(session, config.model.path, false);
    const TrainingData data(config, model->config.vocab_size, session.groups());
    Trainer<T> trainer(session, config, *model);
    const PreparedStep step = data.prepare(0);
    const ProcessGroups& groups = session.groups();
    for (Communicator* group : {groups.world, groups.tp.get(), groups.dp.get()}) group->reset_counts();
    (void)trainer.step(step, 1e-3, false);
    if (world.rank() != 0) return;
    count_group(made.counts, "world", world);
    count_group(made.counts, "tp", *groups.tp);
    count_group(made.counts, "dp", *groups.dp);
    made.parameter_bytes =
        model->parameters.values().size * static_cast<std::int64_t>(sizeof(T)) + model->parameters.gradients().size * 4;
    made.optimizer_bytes = trainer.optimizer().state_bytes();
    made.arena_bytes = session.arena().high_water_bytes();
  });
  return made;
}

class RunEstimateTest : public testing::TestWithParam<Layout> {};

TEST_P(RunEstimateTest, AgreesWithAStepThatIsMade) {
  const Layout& layout = GetParam();
  RunFixture fixture({.count = 16, .shortest = 100, .longest = 129});
  const RunConfig config = make_run(fixture, layout);
  const CheckReport report = make_check_report(config, layout.tensor * layout.data);
  const Made made = layout.dtype == "float32" ? make_step<float>(config, layout) : make_step<BFloat16>(config, layout);

  Counts estimated;
  for (const WireEstimate& line : report.wire) {
    auto& entry = estimated[{line.group, line.verb}];
    entry.calls += static_cast<std::int64_t>(line.calls + 0.5);
    entry.bytes += static_cast<std::int64_t>(line.bytes);
  }
  for (const auto& [key, count] : made.counts) {
    const auto found = estimated.find(key);
    if (found == estimated.end()) {
      ADD_FAILURE() << count.calls << " calls of " << key.first << " " << name_of(key.second) << " were not foreseen";
      continue;
    }
    EXPECT_EQ(found->second.calls, count.calls) << key.first << " " << name_of(key.second);
    const auto bytes = static_cast<double>(count.bytes);
    // An all-to-all carries the targets of other ranks' tokens, which are not the same for each rank.
    const double tolerance = key.second == Collective::kAllToAll ? 0.4 : 0.03;
    EXPECT_NEAR(static_cast<double>(found->second.bytes), bytes, tolerance * bytes + 256)
        << key.first << " " << name_of(key.second);
  }
  for (const auto& [key, count] : estimated) {
    EXPECT_TRUE(made.counts.contains(key) || key.first == "kv") << key.first << " " << name_of(key.second);
  }

  const RunShape run(report.model, config, layout.tensor * layout.data);
  const MemoryEstimate memory = estimate_memory(run, report.step, report.store, {.threads = 1});
  EXPECT_EQ(memory.weights + memory.gradients + memory.optimizer, made.parameter_bytes + made.optimizer_bytes);
  const auto arena = static_cast<double>(made.arena_bytes);
  EXPECT_NEAR(static_cast<double>(memory.arena()), arena, 0.1 * arena);
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, RunEstimateTest,
    testing::Values(Layout{}, Layout{.normalization = "token"}, Layout{.normalization = "full"},
                    Layout{.recompute = "layer"}, Layout{.recompute = "selective"},
                    Layout{.qwen3 = true, .recompute = "selective"}, Layout{.tensor = 2},
                    Layout{.tensor = 2, .sequence_parallel = true}, Layout{.tensor = 2, .recompute = "selective"},
                    Layout{.tensor = 2, .sequence_parallel = true, .recompute = "selective"},
                    Layout{.tensor = 2, .sequence_parallel = true, .recompute = "layer", .normalization = "full"},
                    Layout{.tensor = 2, .data = 2, .zero_stage = 2}, Layout{.data = 2, .zero_stage = 0},
                    Layout{.data = 4, .zero_stage = 2, .dtype = "bfloat16"},
                    Layout{.tensor = 4, .qwen3 = true, .dtype = "bfloat16"},
                    Layout{.normalization = "full", .dtype = "bfloat16"},
                    Layout{.tensor = 2, .data = 2, .zero_stage = 1, .sequence_parallel = true, .dtype = "bfloat16"}),
    name_of_layout);

TEST(RunEstimate, ALargeModelOnManyRanksIsPlannedFromItsShapeAlone) {
  DecoderConfig model;  // Llama 3.1 8B
  model.vocab_size = 128256;
  model.hidden_size = 4096;
  model.ffn_hidden_size = 14336;
  model.num_layers = 32;
  model.num_heads = 32;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  RunConfig config;
  config.model.dtype = "bfloat16";
  config.parallel.tensor = 8;
  const RunShape run(model, config, 64);
  EXPECT_EQ(run.parameters, 8030261248);
  const MemoryEstimate memory = estimate_memory(
      run, {.micro_batches = 1, .tokens = 8192, .targets = 4096, .max_tokens = 8192, .max_targets = 4096}, {});
  EXPECT_NEAR(static_cast<double>(memory.weights), 2.0 * 8030261248 / 8, 0.01 * 8030261248);
  EXPECT_NEAR(static_cast<double>(memory.optimizer), 12.0 * 8030261248 / 64, 0.01 * 8030261248);
  EXPECT_GT(memory.activations, std::int64_t{1} << 30);
  EXPECT_EQ(memory.store, 0);
}

TEST(StoreEstimate, IsBetweenPackedAndRawIds) {
  const std::int64_t positions = 1000, ids = 100000;
  EXPECT_GT(store_disk_bytes({positions, ids}, false), ids);
  EXPECT_LT(store_disk_bytes({positions, ids}, false), 2 * ids);
  EXPECT_EQ(store_disk_bytes({positions, ids}, true), store_disk_bytes({positions, ids}, false) + 2 * ids);
  EXPECT_GT(store_memory_bytes({positions, ids}, false), ids);
}

}  // namespace
}  // namespace reprise
