#include "launcher/plan.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/commands.hpp"
#include "launcher/progress.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"
#include "tests/support/run_program.hpp"

namespace reprise {
namespace {

const std::filesystem::path kSource = REPRISE_SOURCE_DIR;

/// configs/<name>.toml on the config.json of configs/models.
RunConfig shipped_run(const std::string& file, const std::string& model, std::int64_t global_batch = 64,
                      const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all = {"model.path=" + (kSource / "configs" / "models" / model).string(),
                                  "train.global_batch=" + std::to_string(global_batch)};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return read_run_config(kSource / "configs" / file, all);
}

bool mentions(const std::vector<std::string>& lines, const std::string& part) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(part) != std::string::npos; });
}

TEST(Plan, NeedsNothingButConfigJson) {
  const RunConfig config = shipped_run("llama3_8b.toml", "llama3-8b");
  const Plan plan = make_plan(config, {.world_size = 8, .hardware = "h100"});
  EXPECT_EQ(plan.parameters, 8030261248);
  EXPECT_EQ(plan.tensor, 4);
  EXPECT_EQ(plan.data, 2);
  EXPECT_FALSE(plan.dataset.read);
  EXPECT_DOUBLE_EQ(plan.tokens_per_step(), 64.0 * 4096.0);
  EXPECT_DOUBLE_EQ(plan.step.micro_batches, 32.0);
  EXPECT_TRUE(plan.fits) << plan.fit;
  EXPECT_EQ(plan.steps, 0);  // epochs of data that is not there
  EXPECT_TRUE(mentions(plan.notes, "--data-tokens"));
  EXPECT_TRUE(mentions(plan.notes, "never timed on a GPU"));
  const Plan whole = make_plan(config, {.world_size = 8, .data_tokens = 100'000'000});
  EXPECT_EQ(whole.steps, static_cast<std::int64_t>(std::ceil(2.0 * std::ceil(100e6 / 4096.0) / 64.0)));
  EXPECT_NEAR(whole.train_seconds, static_cast<double>(whole.steps) * whole.time().total(), 1e-6);
  // Stage 0 is a forward pass with the full head over the data once: between a sixth and a half of one epoch.
  EXPECT_GT(whole.collect_seconds, whole.train_seconds / 12.0);
  EXPECT_LT(whole.collect_seconds, whole.train_seconds / 4.0);
  EXPECT_NEAR(static_cast<double>(whole.store.positions), 100e6, 1e4);
  EXPECT_GT(whole.store_bytes, whole.store.positions * 100);
}

TEST(Plan, ComparesTheHeadsHonestly) {
  const Plan plan = make_plan(shipped_run("llama3_8b.toml", "llama3-8b"), {.world_size = 8});
  ASSERT_EQ(plan.heads.size(), 3U);
  EXPECT_EQ(plan.heads[0].name, "tile");
  const auto head = [&](const std::string& name) {
    return *std::find_if(plan.heads.begin(), plan.heads.end(), [&](const HeadPlan& h) { return h.name == name; });
  };
  const StepTime full = head("full").time, tile = head("tile").time, token = head("token").time;
  EXPECT_GT(full.head, 5.0 * tile.head);
  EXPECT_GT(full.head, 5.0 * token.head);
  // The head of 8B is 7 % of the parameters' work: what is saved is less than a tenth or so of the step.
  EXPECT_GT(1.0 - tile.total() / full.total(), 0.04);
  EXPECT_LT(1.0 - tile.total() / full.total(), 0.15);
  EXPECT_NEAR(full.total() - tile.total(), full.head - tile.head, 1e-9);
  EXPECT_GT(plan.utilisation(), 0.2);
  EXPECT_LT(plan.utilisation(), 0.66);
}

TEST(Plan, SaysWhatDoesNotFit) {
  // 70B: 6 bytes a parameter over 8 tensor ranks, 12 over 24; a pipeline would split all 18 over 24.
  const RunConfig large = shipped_run("llama3_8b.toml", "llama3-70b", 48, {"parallel.tensor=8"});
  const Plan pipeline = make_plan(large, {.world_size = 24});
  EXPECT_FALSE(pipeline.fits);
  EXPECT_NE(pipeline.fit.find("pipeline parallelism, which reprise has not"), std::string::npos) << pipeline.fit;
  // 18 bytes x 70.6e9 / 8 are more than a card has, however they are split.
  const Plan few = make_plan(large, {.world_size = 8});
  EXPECT_FALSE(few.fits);
  EXPECT_NE(few.fit.find("alone are 148 GiB a rank"), std::string::npos) << few.fit;
  // The run's own layout does not fit, another does.
  const Plan one =
      make_plan(shipped_run("llama3_8b.toml", "llama3-70b", 64, {"parallel.tensor=4"}), {.world_size = 64});
  EXPECT_FALSE(one.fits);
  EXPECT_NE(one.fit.find("fastest: tensor 8 x data 8"), std::string::npos) << one.fit;
  const Plan nodes =
      make_plan(shipped_run("llama3_8b.toml", "llama3-405b", 512, {"parallel.tensor=8"}), {.world_size = 512});
  EXPECT_NE(nodes.fit.find("span several nodes"), std::string::npos) << nodes.fit;
}

TEST(Plan, AdaptersTakeTheGradientsOfFrozenWeightsAway) {
  const Plan full = make_plan(shipped_run("llama3_8b.toml", "llama3-8b"), {.world_size = 8});
  const Plan lora = make_plan(shipped_run("llama3_8b.toml", "llama3-8b", 64, {"lora.rank=16"}), {.world_size = 8});
  EXPECT_NEAR(lora.time().products / full.time().products, 2.0 / 3.0, 0.05);
  EXPECT_LT(lora.memory().gradients, full.memory().gradients / 50);
  EXPECT_LT(lora.time().optimizer, full.time().optimizer / 20.0);
  EXPECT_LT(lora.time().head, full.time().head);
}

TEST(Plan, RefusesWhatCannotRun) {
  const RunConfig config = shipped_run("llama3_8b.toml", "llama3-8b");
  expect_error(ErrorKind::kUsage, {"--hardware h800"},
               [&] { (void)make_plan(config, {.world_size = 8, .hardware = "h800"}); });
  expect_error(ErrorKind::kUsage, {"parallel.tensor = 4 does not divide the number of ranks = 6"},
               [&] { (void)make_plan(config, {.world_size = 6}); });
  expect_error(ErrorKind::kUsage, {"16384 ranks", "train.global_batch = 64"},
               [&] { (void)sweep_layouts(config, {.world_size = 16384}); });
  expect_error(ErrorKind::kUsage, {"--tokens-per-step 1000000", "hold at most 262144"},
               [&] { (void)make_plan(config, {.world_size = 8, .tokens_per_step = 1'000'000}); });
}

TEST(Plan, TakesWhatTheCommandLineSaysOfTheData) {
  const RunConfig config = shipped_run("llama3_8b.toml", "llama3-8b");
  const Plan half = make_plan(config, {.world_size = 8, .tokens_per_step = 64 * 2048, .targets_share = 0.25});
  EXPECT_DOUBLE_EQ(half.tokens_per_step(), 64.0 * 2048.0);
  EXPECT_DOUBLE_EQ(half.step.micro_batches, 16.0);  // two samples a packed row
  EXPECT_DOUBLE_EQ(half.step.targets, 0.25 * half.step.tokens);
  const Plan whole = make_plan(config, {.world_size = 8});
  EXPECT_LT(half.time().attention, 0.3 * whole.time().attention);  // half the tokens, half the pairs of each
}

TEST(Plan, ReadsTheDataWhereItIs) {
  RunFixture fixture({.count = 20});
  RunConfig config = fixture.config;
  config.replay.normalization = "tile";
  config.replay.store = fixture.folder / "store";
  const Plan plan = make_plan(config, {.world_size = 2, .hardware = "cpu"});
  EXPECT_TRUE(plan.dataset.read);
  EXPECT_EQ(plan.dataset.samples, 20);
  EXPECT_GT(plan.dataset.targets_share, 0.1);
  EXPECT_LT(plan.dataset.targets_share, 1.0);
  double tokens = 0.0, pairs = 0.0;
  for (const auto& document : fixture.documents.tokens) {
    const auto length = static_cast<double>(document.size() - 1);
    tokens += length;
    pairs += 0.5 * length * length;
  }
  EXPECT_NEAR(plan.dataset.pairs_a_token, pairs / tokens, 1e-9);
  EXPECT_GT(plan.dataset.pairs_a_token, 0.5 * plan.dataset.sample_tokens);  // long samples weigh more
  EXPECT_TRUE(plan.fits) << plan.fit;
  EXPECT_GT(plan.collect_seconds, 0.0);
  EXPECT_GT(plan.train_seconds, 0.0);
  EXPECT_FALSE(mentions(plan.notes, "GPU"));
}

TEST(Sweep, ProposesWhatFitsFastestFirst) {
  const RunConfig config = shipped_run("llama3_8b.toml", "llama3-8b");
  const PlanOptions options{.world_size = 8};
  const Sweep sweep = sweep_layouts(config, options);
  ASSERT_FALSE(sweep.rows.empty());
  EXPECT_GT(sweep.tried, sweep.fitting);
  for (std::size_t i = 0; i < sweep.rows.size(); ++i) {
    const SweepRow& row = sweep.rows[i];
    EXPECT_EQ(row.tensor * row.data, 8);
    EXPECT_LE(static_cast<double>(row.memory.device()), usable_bytes(find_hardware("h100")));
    EXPECT_GE(row.step_seconds, sweep.rows[i == 0 ? 0 : i - 1].step_seconds);
  }
  // The run that is proposed takes the time that was promised.
  const SweepRow& best = sweep.rows.front();
  const RunConfig proposed =
      shipped_run("llama3_8b.toml", "llama3-8b", 64,
                  {"parallel.tensor=" + std::to_string(best.tensor),
                   best.tensor > 1 ? "parallel.sequence_parallel=true" : "parallel.sequence_parallel=false",
                   "train.micro_batch=" + std::to_string(best.micro_batch), "train.recompute=" + best.recompute,
                   "optimizer.zero_stage=" + std::to_string(best.zero_stage)});
  const Plan plan = make_plan(proposed, options);
  EXPECT_TRUE(plan.fits) << plan.fit;
  EXPECT_NEAR(plan.time().total(), best.step_seconds, 1e-9);
  EXPECT_LE(plan.time().total(), make_plan(config, options).time().total());
}

TEST(PlanCommand, PrintsTextAndJson) {
  const RunConfig config = shipped_run("llama3_8b.toml", "llama3-8b");
  testing::internal::CaptureStdout();
  plan_command(config, {.world_size = 8, .hardware = "b200"}, false, true);
  const auto json = nlohmann::json::parse(testing::internal::GetCapturedStdout());
  double sum = 0.0;
  for (const char* part :
       {"products", "attention", "passes", "recompute", "head", "optimizer", "tensor_exposed", "data_exposed"}) {
    sum += json["seconds"][part].get<double>();
  }
  EXPECT_NEAR(sum, json["seconds"]["total"].get<double>(), 1e-9);
  EXPECT_FALSE(json["hardware"]["validated"].get<bool>());
  EXPECT_EQ(json["layout"]["world"], 8);
  EXPECT_GT(json["collectives"].size(), 3U);
  testing::internal::CaptureStdout();
  plan_command(config, {.world_size = 8}, false, false);
  plan_command(config, {.world_size = 8}, true, false);
  const std::string text = testing::internal::GetCapturedStdout();
  for (const char* part : {"gradients (float32)", "reduce_scatter", "tensor-parallel collectives", "tile of 8", "fits",
                           "cheapest: parallel.tensor="}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

/// The program itself, on a machine that has neither weights nor data.
TEST(PlanProgram, AnswersFromAConfigAlone) {
  TemporaryFolder folder;
  const auto run = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {REPRISE_PROGRAM, "plan"});
    return run_program(words, {.output = folder / "printed"});
  };
  const std::string file = kSource / "configs" / "llama3_8b.toml";
  const std::string model = "model.path=" + (kSource / "configs" / "models" / "llama3-70b").string();
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult planned = run({file, model, "parallel.tensor=8", "train.global_batch=16384", "--world", "16384",
                                     "--hardware", "h200", "--json"});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(planned.exit_code, 0) << planned.printed;
  EXPECT_TRUE(nlohmann::json::parse(planned.printed)["fits"].get<bool>());
  EXPECT_LT(seconds.count(), 1.0);

  const ProgramResult swept = run({file, model, "--world", "64", "--sweep"});
  EXPECT_EQ(swept.exit_code, 0) << swept.printed;
  EXPECT_NE(swept.printed.find("cheapest: "), std::string::npos) << swept.printed;
  const ProgramResult measured = run({"--against", kSource / "configs" / "scaling" / "cpu_steps.json"});
  EXPECT_NE(measured.printed.find("rows are within 20 %"), std::string::npos) << measured.printed;

  const ProgramResult nothing = run({});
  EXPECT_EQ(nothing.exit_code, 2);
  EXPECT_NE(nothing.printed.find("RUN.toml is required"), std::string::npos) << nothing.printed;
  const ProgramResult wrong = run({file, "--hardware", "abacus"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_NE(wrong.printed.find("abacus"), std::string::npos) << wrong.printed;
}

// ---- the table of docs/scaling.md ----------------------------------------------------------------------------------

struct PlannedModel {
  const char *title, *file, *model;
};
constexpr PlannedModel kModels[] = {{"Llama 3.1 8B", "llama3_8b.toml", "llama3-8b"},
                                    {"Qwen3 8B", "qwen3_8b.toml", "qwen3-8b"},
                                    {"Llama 3.1 70B", "llama3_8b.toml", "llama3-70b"},
                                    {"Llama 3.1 405B", "llama3_8b.toml", "llama3-405b"}};
constexpr std::int64_t kWorlds[] = {8, 64, 512, 4096, 16384};

std::string row_of(const PlannedModel& model, std::int64_t world) {
  const std::int64_t batch = std::max<std::int64_t>(256, world);
  const RunConfig config = shipped_run(model.file, model.model, batch);
  const Sweep sweep = sweep_layouts(config, {.world_size = world});
  const std::string start = fmt::format("| {} | {} | {} |", model.title, format_count(world), format_count(batch));
  if (sweep.rows.empty()) {
    const bool few = static_cast<double>(sweep.state_bytes) > usable_bytes(find_hardware("h100"));
    return fmt::format("{} {} | {} | | | | |\n", start, few ? "too few ranks" : "needs pipeline parallelism",
                       format_bytes(few ? sweep.state_bytes : sweep.least_bytes));
  }
  const SweepRow& best = sweep.rows.front();
  RunConfig chosen = config;
  chosen.parallel.tensor = best.tensor;
  chosen.parallel.sequence_parallel = best.tensor > 1;
  chosen.train.micro_batch = best.micro_batch;
  chosen.train.recompute = best.recompute;
  chosen.optimizer.zero_stage = best.zero_stage;
  const Plan plan = make_plan(chosen, {.world_size = world});
  const auto full =
      std::find_if(plan.heads.begin(), plan.heads.end(), [](const HeadPlan& h) { return h.name == "full"; });
  return fmt::format("{} {} x {}, {}, {}, {}{} | {} | {:.2f} | {} | {:.1f} % | {:.1f} % |\n", start, best.tensor,
                     best.data, best.micro_batch, best.recompute, best.zero_stage,
                     best.across_nodes ? ", tensor spans nodes" : "", format_bytes(best.memory.device()),
                     plan.time().total(), format_count(static_cast<std::int64_t>(best.tokens_per_second_per_rank)),
                     100.0 * full->time.head / full->time.total(),
                     100.0 * (1.0 - plan.time().total() / full->time.total()));
}

TEST(PlanTable, StandsInTheDocumentsAndTakesUnderASecondARow) {
  std::ifstream file(kSource / "docs" / "scaling.md");
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::string table;
  for (const PlannedModel& model : kModels) {
    for (const std::int64_t world : kWorlds) {
      const auto start = std::chrono::steady_clock::now();
      table += row_of(model, world);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      EXPECT_LT(seconds.count(), 1.0) << model.title << " on " << world;
    }
  }
  EXPECT_NE(page.find(table), std::string::npos) << "docs/scaling.md must have\n" << table;
}

}  // namespace
}  // namespace reprise
