#include <gtest/gtest.h>

#include <random>

#include "launcher/checkpoint.hpp"
#include "launcher/hugging_face.hpp"
#include "tests/support/program_fixture.hpp"

// The program itself as a process: what a run leaves, how it ends, and how it goes on.

namespace reprise {
namespace {

/// A run with moments, evaluations, checkpoints and two epochs and a half.
struct TrainProgram : ProgramFixture {
  explicit TrainProgram(const RandomDocumentsOptions& documents_options = {.count = 20})
      : ProgramFixture(documents_options) {
    config.optimizer.name = "moclip";
    config.data.eval = {folder / "held_out", folder / "data"};
    config.train.steps = 6;
    config.train.eval_every = 3;
    config.train.checkpoint_every = 2;
    config.train.keep = 10;
  }
  void name_run(const std::string& name) { config.run.folder = folder / name; }
};

void expect_same_run(const TrainProgram& program, const std::string& run, const std::string& reference) {
  EXPECT_EQ(comparable_metrics(program.folder / run), comparable_metrics(program.folder / reference));
  const std::int64_t last = program.config.train.steps;
  EXPECT_EQ(checkpoint_tensors(program.folder / run, last), checkpoint_tensors(program.folder / reference, last));
}

TEST(TrainProgram, LeavesResolvedRunFileProvenanceMetricsAndSoundCheckpoints) {
  TrainProgram program;
  program.config.train.epochs = 0.5;  // 10 samples: 2 steps of 8
  const ProgramResult result = program.train(1, "", {"optimizer.lr=0.02"});
  ASSERT_EQ(result.exit_code, 0) << result.printed;

  const std::filesystem::path run = program.config.run.folder;
  const RunConfig resolved = read_run_config(run / "run.toml", {});
  EXPECT_EQ(resolved.optimizer.lr, 0.02);
  EXPECT_EQ(resolved.train.steps, 2);
  const auto provenance = nlohmann::json::parse(read_text_file(run / "provenance.json", ErrorKind::kData));
  for (const char* key : {"version", "cpu", "simd", "blas_kernel", "compiler", "host"}) {
    EXPECT_FALSE(provenance.at(key).get<std::string>().empty()) << key;
  }
  EXPECT_EQ(provenance["sha256"]["model"], model_fingerprint(program.config.model.path));
  EXPECT_EQ(provenance["layout"]["data"], 1);

  const auto lines = comparable_metrics(run);
  ASSERT_EQ(lines.size(), 7u);  // schema, two sets before, two steps, two sets after
  EXPECT_EQ(lines[0]["schema"], 1);
  EXPECT_EQ(lines[1]["eval"], (program.folder / "held_out").string());
  EXPECT_EQ(lines[1]["step"], 0);
  EXPECT_EQ(lines[3]["step"], 1);
  EXPECT_EQ(lines[6]["step"], 2);
  EXPECT_LT(lines[6]["loss"], lines[2]["loss"]) << "the training set is not learnt";
  EXPECT_TRUE(verify_checkpoint(run / "checkpoints" / "step-00000002").empty());
  const TrainerState state = read_trainer_state(run / "checkpoints" / "step-00000002");
  EXPECT_EQ(state.next_sample, 16);
  EXPECT_EQ(state.best_step, 2);

  const ProgramResult again = program.train(1, "", {"optimizer.lr=0.02"});
  EXPECT_EQ(again.exit_code, 0) << again.printed;
  EXPECT_EQ(comparable_metrics(run), lines);
}

class KilledTest : public testing::TestWithParam<std::pair<int, int>> {};  // ranks, tensor

TEST_P(KilledTest, GoesOnBitForBit) {
  const auto [ranks, tensor] = GetParam();
  TrainProgram program;
  program.config.parallel.tensor = tensor;
  program.name_run("whole");
  const ProgramResult whole = program.train(ranks);
  ASSERT_EQ(whole.exit_code, 0) << whole.printed;

  const unsigned seed = std::random_device{}();
  const auto kill_step = 1 + static_cast<std::int64_t>(seed % 6);
  SCOPED_TRACE(fmt::format("killed in step {}", kill_step));
  program.name_run("killed");
  const ProgramResult killed = program.train(ranks, fmt::format("train.step={},rank={}", kill_step, ranks - 1));
  EXPECT_NE(killed.exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(program.folder / "killed/checkpoints/step-00000006"));
  const ProgramResult resumed = program.train(ranks);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.printed;
  EXPECT_EQ(resumed.printed.find("going on from step") != std::string::npos, kill_step > 2) << resumed.printed;
  expect_same_run(program, "killed", "whole");
}
INSTANTIATE_TEST_SUITE_P(Layouts, KilledTest, testing::Values(std::pair{1, 1}, std::pair{2, 1}, std::pair{2, 2}));

TEST(TrainProgram, KilledAtAnyMomentItGoesOnBitForBit) {
  TrainProgram program;
  program.config.train.steps = 60;
  program.config.train.checkpoint_every = 7;
  program.config.train.eval_every = 10;
  program.name_run("whole");
  ASSERT_EQ(program.train().exit_code, 0);
  program.name_run("killed");
  std::mt19937 generator(std::random_device{}());
  for (int kills = 0; kills < 3; ++kills) {
    RunningProgram running(program.command(program.run_words("train"), 1), program.options());
    const auto metrics = program.folder / "killed/metrics.jsonl";
    wait_until([&] { return std::filesystem::exists(metrics) && std::filesystem::file_size(metrics) > 0; });
    std::this_thread::sleep_for(std::chrono::milliseconds(generator() % 60));
    running.signal(SIGKILL);
    running.wait();
  }
  const ProgramResult resumed = program.train();
  ASSERT_EQ(resumed.exit_code, 0) << resumed.printed;
  expect_same_run(program, "killed", "whole");
}

TEST(TrainProgram, AStopSignalToOneRankWritesACheckpointAndExits75) {
  for (const int ranks : {1, 2}) {
    TrainProgram program;
    program.name_run("whole");
    ASSERT_EQ(program.train(ranks).exit_code, 0);
    program.name_run("stopped");
    const ProgramResult stopped = program.train(ranks, fmt::format("train.step=3,rank={},action=stop", ranks - 1));
    EXPECT_EQ(stopped.exit_code, 75) << stopped.printed;
    EXPECT_NE(stopped.printed.find("after step 3 of 6"), std::string::npos) << stopped.printed;
    ASSERT_EQ(program.train(ranks).exit_code, 0);
    expect_same_run(program, "stopped", "whole");
  }
}

TEST(TrainProgram, RanksAsThreadsAndAsProcessesGiveTheSameBits) {
  for (const int tensor : {1, 2}) {
    TrainProgram program;
    program.config.parallel.tensor = tensor;
    program.config.optimizer.zero_stage = 2;
    program.name_run("processes");
    ASSERT_EQ(program.train(2).exit_code, 0);
    program.name_run("threads");
    ASSERT_EQ(program.train(1, "", {"--ranks", "2"}).exit_code, 0);
    expect_same_run(program, "threads", "processes");
  }
}

TEST(TrainProgram, StopAfterCountsTheStepsOfThisProcess) {
  TrainProgram program;
  program.name_run("whole");
  ASSERT_EQ(program.train().exit_code, 0);
  program.name_run("parts");
  EXPECT_EQ(program.train(1, "", {"--stop-after", "3"}).exit_code, 75);
  EXPECT_EQ(program.train(1, "", {"--stop-after", "2"}).exit_code, 75);
  EXPECT_EQ(program.train(1, "", {"--stop-after", "2"}).exit_code, 0);
  expect_same_run(program, "parts", "whole");
}

TEST(TrainProgram, AnotherLayoutGoesOnWithTheSameParametersAndMoments) {
  TrainProgram program;
  program.config.train.steps = 2;
  ASSERT_EQ(program.train(1).exit_code, 0);
  program.config.train.steps = 4;
  program.config.optimizer.zero_stage = 2;
  program.config.parallel.tensor = 2;
  const ProgramResult result = program.train(2);
  ASSERT_EQ(result.exit_code, 0) << result.printed;
  const auto lines = comparable_metrics(program.config.run.folder);
  EXPECT_EQ(lines.back()["step"], 4);
  EXPECT_LT(lines.back()["loss"], lines[2]["loss"]);
}

TEST(TrainProgram, RefusesToGoOnUnderOtherMathematicsAndNamesWhatDiffers) {
  TrainProgram program;
  program.config.train.steps = 2;
  ASSERT_EQ(program.train().exit_code, 0);
  const ProgramResult other = program.train(1, "", {"optimizer.lr=0.5", "data.seed=7", "train.log_every=2"});
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.printed.find("optimizer.lr: 0.01 -> 0.5"), std::string::npos) << other.printed;
  EXPECT_NE(other.printed.find("data.seed: 1 -> 7"), std::string::npos) << other.printed;
  EXPECT_EQ(other.printed.find("log_every"), std::string::npos) << other.printed;
  EXPECT_EQ(program.train(1, "", {"train.steps=1"}).exit_code, 2);

  make_model_folder(program.config.model.path, program.model, {.seed = 9});
  const ProgramResult model = program.train();
  EXPECT_EQ(model.exit_code, 5) << model.printed;
  EXPECT_NE(model.printed.find("another model"), std::string::npos) << model.printed;
  make_model_folder(program.config.model.path, program.model);
  program.documents.tokens[0][0] = 5;
  make_dataset(program.folder / "data", program.documents.tokens, program.documents.options);
  EXPECT_EQ(program.train().exit_code, 4);

  const ProgramResult fresh = program.train(1, "", {"--fresh", "optimizer.lr=0.5"});
  EXPECT_EQ(fresh.exit_code, 0) << fresh.printed;
}

TEST(TrainProgram, TheLockKeepsASecondRunOut) {
  TrainProgram program;
  program.config.train.steps = 100000;
  RunningProgram first(program.command(program.run_words("train"), 1), program.options());
  ASSERT_TRUE(wait_until([&] { return std::filesystem::exists(program.folder / "run/metrics.jsonl"); }));
  auto options = program.options();
  options.output = program.folder / "second.txt";
  const ProgramResult second = run_program(program.command(program.run_words("train"), 1), options);
  EXPECT_EQ(second.exit_code, 2);
  EXPECT_NE(second.printed.find("in use by process"), std::string::npos) << second.printed;
  first.signal(SIGTERM);
  EXPECT_EQ(first.wait(), 75);
}

TEST(TrainProgram, ASignalToMpirunStopsAllRanksWithACheckpoint) {
  TrainProgram program;
  program.config.train.steps = 100000;
  program.config.train.checkpoint_every = 0;
  program.config.train.eval_every = 0;
  RunningProgram running(program.command(program.run_words("train"), 2), program.options());
  const auto metrics = program.folder / "run/metrics.jsonl";
  ASSERT_TRUE(wait_until(
      [&] { return std::filesystem::exists(metrics) && comparable_metrics(program.folder / "run").size() > 2; }));
  running.signal(SIGUSR1);
  EXPECT_EQ(running.wait(), 75) << running.printed();
  EXPECT_EQ(list_checkpoints(program.folder / "run/checkpoints").size(), 1u);
}

TEST(TrainProgram, SkipsASingleBadStepAndCountsIt) {
  for (const int ranks : {1, 2}) {
    TrainProgram program;
    const ProgramResult result = program.train(ranks, fmt::format("train.step=2,rank={},action=nan", ranks - 1));
    ASSERT_EQ(result.exit_code, 0) << result.printed;
    EXPECT_NE(result.printed.find("1 of them skipped"), std::string::npos) << result.printed;
    std::vector<bool> skipped;
    for (const auto& line : comparable_metrics(program.config.run.folder)) {
      if (line.contains("skipped")) skipped.push_back(line["skipped"].get<bool>());
    }
    EXPECT_EQ(skipped, (std::vector<bool>{false, true, false, false, false, false}));
    EXPECT_EQ(read_trainer_state(program.folder / "run/checkpoints/step-00000006").steps_taken, 5);
  }
}

TEST(TrainProgram, EndsWith6AfterTooManySkipsInARow) {
  for (const int ranks : {1, 2}) {
    TrainProgram program;
    program.config.optimizer.max_skips = 3;
    program.config.optimizer.lr = 1e30;  // the first step ruins the model
    program.config.optimizer.clip_norm = 0.0;
    program.config.train.eval_every = 0;
    program.config.train.steps = 20;
    const ProgramResult result = program.train(ranks);
    EXPECT_EQ(result.exit_code, 6) << result.printed;
    EXPECT_NE(result.printed.find("the last 3 steps were skipped"), std::string::npos) << result.printed;
    EXPECT_TRUE(std::filesystem::exists(program.folder / "run/metrics.jsonl"));
  }
}

TEST(TrainProgram, BFloat16LearnsAndResumes) {
  TrainProgram program;
  program.config.model.dtype = "bfloat16";
  program.name_run("whole");
  ASSERT_EQ(program.train(2).exit_code, 0);
  program.name_run("killed");
  EXPECT_NE(program.train(2, "train.step=5,rank=0").exit_code, 0);
  ASSERT_EQ(program.train(2).exit_code, 0);
  expect_same_run(program, "killed", "whole");
  const auto lines = comparable_metrics(program.folder / "whole");
  EXPECT_LT(lines.back()["loss"], lines[2]["loss"]);
}

std::string tensor_bytes(const WeightFiles& weights, const std::string& name) {
  const SafetensorsReader& file = weights.file(name);
  const SafetensorsEntry& entry = weights.entry(name);
  std::string bytes(static_cast<std::size_t>(entry.bytes()), ' ');
  file.read_bytes(entry, 0, entry.bytes(), bytes.data());
  return bytes;
}

TEST(ExportProgram, AfterStepsOfRateZeroEveryTensorHasItsBytesAgain) {
  for (const auto& [stored, dtype] : {std::pair{"F32", "float32"}, {"BF16", "bfloat16"}}) {
    TrainProgram program;
    std::filesystem::remove_all(program.config.model.path);
    make_model_folder(program.config.model.path, program.model, {.dtype = stored, .tensors_per_file = 7});
    program.config.model.dtype = dtype;
    program.config.optimizer.lr = 0.0;
    program.config.train.steps = 1;
    ASSERT_EQ(program.train(2).exit_code, 0);
    const auto out = program.folder / "exported";
    const ProgramResult result =
        program.run({"export", "--run", program.config.run.folder, "--out", out, "--dtype", dtype});
    ASSERT_EQ(result.exit_code, 0) << result.printed;
    const WeightFiles before(program.config.model.path), after(out);
    ASSERT_EQ(after.names(), before.names());
    for (const std::string& name : before.names()) {
      ASSERT_EQ(before.entry(name).dtype, stored);
      ASSERT_EQ(after.entry(name).dtype, stored);
      EXPECT_TRUE(tensor_bytes(after, name) == tensor_bytes(before, name)) << name;
    }
    EXPECT_EQ(read_text_file(out / "tokenizer.json", ErrorKind::kUsage),
              read_text_file(std::filesystem::path(program.config.model.path) / "tokenizer.json", ErrorKind::kUsage));
    EXPECT_EQ(program.run({"export", "--run", program.config.run.folder, "--out", out}).exit_code, 2) << "not empty";
  }
}

TEST(ExportProgram, TakesTheStepOrTheBestThatIsAskedForAndEvaluatesAsTheRunDid) {
  TrainProgram program;
  ASSERT_EQ(program.train(2).exit_code, 0);
  const auto run = program.config.run.folder;
  const auto out = program.folder / "exported";
  ASSERT_EQ(program.run({"export", "--run", run, "--out", out, "--step", "6"}).exit_code, 0);
  const ProgramResult evaluated =
      program.run({"eval", "--model", out, "--data", program.folder / "data", "--sequence-length", "32", "--json",
                   "--per-token", program.folder / "t.npy"});
  ASSERT_EQ(evaluated.exit_code, 0) << evaluated.printed;
  const std::size_t json = evaluated.printed.find('{');
  ASSERT_NE(json, std::string::npos) << evaluated.printed;
  const auto result = nlohmann::json::parse(evaluated.printed.substr(json, evaluated.printed.rfind('}') - json + 1));
  EXPECT_NEAR(result["loss"].get<double>(), comparable_metrics(run).back()["loss"].get<double>(), 1e-5);
  EXPECT_GT(std::filesystem::file_size(program.folder / "t.npy"), 4 * result["tokens"].get<std::uintmax_t>());

  EXPECT_EQ(program.run({"export", "--run", run, "--out", program.folder / "best", "--best"}).exit_code, 0);
  const ProgramResult missing = program.run({"export", "--run", run, "--out", program.folder / "x", "--step", "5"});
  EXPECT_EQ(missing.exit_code, 5);
  EXPECT_NE(missing.printed.find("2, "), std::string::npos) << missing.printed;
  EXPECT_FALSE(std::filesystem::exists(program.folder / "x"));

  const auto answers = program.folder / "answers.jsonl";
  const ProgramResult generated = program.run({"generate", "--model", out, "--data", program.folder / "held_out",
                                               "--max-tokens", "5", "--batch", "2", "--out", answers},
                                              2);
  ASSERT_EQ(generated.exit_code, 0) << generated.printed;
  std::istringstream lines(read_text_file(answers, ErrorKind::kData));
  std::int64_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) EXPECT_EQ(nlohmann::json::parse(line)["sample"], count);
  EXPECT_EQ(count, 5);
}

}  // namespace
}  // namespace reprise
