#include "launcher/run_config.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/file_io.hpp"
#include "launcher/run_config_fields.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

RunConfig parse(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return parse_run_config(text, "run.toml", overrides);
}

void expect_usage_error(std::string_view text, const std::vector<std::string>& parts,
                        const std::vector<std::string>& overrides = {}) {
  expect_error(ErrorKind::kUsage, parts, [&] { (void)parse(text, overrides); });
}

/// Another legal value than the default for every key.
RunConfig changed_config() {
  RunConfig config;
  config.model = {"models/llama \"8B\"", "bfloat16", 128000};
  config.data = {{"data/x", "data/y"}, {0.7, 0.3}, {"data/web"}, 0.25, {"data/a", "data/b"}, 4096, true, false, 7};
  config.replay = {"/scratch/store", 0.98, 256, 2, "bucket", 64, "token", 16, 512, true, "skip"};
  config.optimizer = {"adamw", 2e-5, {0.85, 0.999}, 1e-6, 0.1, 0.5, 60.0, "global", "project", 2, 3};
  config.lora = {8, 32.0, true, {"q_proj", "v_proj"}, "adapters/first"};
  config.schedule = {20, "linear", 0.0};
  config.train = {12345, 2.5, 128, 8, "layer", 25, 50, 5, 10, 7, 11};
  config.parallel = {4, true, false, "cpu", "mpi"};
  config.run = {"runs/second"};
  return config;
}

TEST(RunConfig, AnEmptyTextIsTheDefaults) {
  EXPECT_TRUE(differences(parse(""), RunConfig{}).empty());
}

TEST(RunConfig, EveryKeyIsPrintedAndReadBack) {
  RunConfig changed = changed_config();
  const auto lines = differences(RunConfig{}, changed);
  EXPECT_EQ(lines.size(), run_config_fields().size()) << "a key that this test does not change";
  for (const bool commented : {false, true}) {
    EXPECT_TRUE(differences(changed, parse(to_toml(changed, commented))).empty());
    EXPECT_TRUE(differences(RunConfig{}, parse(to_toml(RunConfig{}, commented))).empty());
  }
}

TEST(RunConfig, EveryKeyCanBeOverridden) {
  RunConfig changed = changed_config();
  std::vector<std::string> overrides;
  for (const Field& field : run_config_fields()) {
    overrides.push_back(fmt::format("{}={}", field.name(), to_toml_value(field.value(changed))));
  }
  EXPECT_TRUE(differences(changed, parse("", overrides)).empty());
}

TEST(RunConfig, EveryKeyIsExplained) {
  const std::string text = to_toml(RunConfig{}, true);
  for (const Field& field : run_config_fields()) {
    EXPECT_NE(text.find(fmt::format("\n{} = ", field.key)), std::string::npos) << field.name();
  }
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    EXPECT_LE(end - begin, 120U) << text.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(RunConfig, NumbersArePrintedByShortestRoundTrip) {
  RunConfig config;
  config.optimizer.lr = 3e-4;
  config.optimizer.eps = 1e-12;
  config.replay.tau = 0.1 + 0.2;
  const std::string text = to_toml(config);
  EXPECT_NE(text.find("lr = 0.0003\n"), std::string::npos) << text;
  EXPECT_NE(text.find("eps = 1e-12\n"), std::string::npos) << text;
  EXPECT_NE(text.find("tau = 0.30000000000000004\n"), std::string::npos) << text;
  EXPECT_NE(text.find("clip_norm = 1.0\n"), std::string::npos) << text;
}

TEST(RunConfig, StringsSurviveQuotesAndControlCharacters) {
  RunConfig config;
  config.run.folder = "a \"b\" \\ c\td\x01 \u00fcber";
  EXPECT_EQ(parse(to_toml(config)).run.folder, config.run.folder);
  EXPECT_EQ(parse("", {fmt::format("run.folder={}", config.run.folder)}).run.folder, config.run.folder);
}

TEST(RunConfig, AnUnknownKeyIsNamedWithItsPlaceAndTheNearestKey) {
  expect_usage_error("[optimizer]\nname = \"adamw\"\n  learning_rate = 1e-4\n",
                     {"run.toml:3:3", "unknown key \"optimizer.learning_rate\""});
  expect_usage_error("[optimizer]\nmax_angel = 60.0\n", {"run.toml:2:1", "did you mean \"optimizer.max_angle\"?"});
  expect_usage_error("[train]\ngloabl_batch = 8\n", {"did you mean \"train.global_batch\"?"});
  expect_usage_error("[train]\nlr = 1e-4\n", {"unknown key \"train.lr\"", "did you mean \"optimizer.lr\"?"});
  expect_usage_error("[optimiser]\nlr = 1e-4\n", {"run.toml:1:2", "unknown section", "did you mean [optimizer]?"});
  expect_usage_error("lr = 1e-4\n", {"run.toml:1:1", "unknown key \"lr\"", "did you mean \"optimizer.lr\"?"});
  expect_usage_error("optimizer.lrr = 1e-4\n", {"run.toml:1:11", "did you mean \"optimizer.lr\"?"});
  expect_usage_error("", {"override \"optimizer.lrr=1\"", "did you mean \"optimizer.lr\"?"}, {"optimizer.lrr=1"});
  expect_usage_error("", {"override \"lr=1\"", "did you mean \"optimizer.lr\"?"}, {"lr=1"});
}

TEST(RunConfig, SyntaxAndRepeatedKeysAreRefusedWithTheirPlace) {
  expect_usage_error("[train]\nsteps = 5\nsteps = 6\n", {"run.toml:3:", "steps"});
  expect_usage_error("[train]\nsteps = = 5\n", {"run.toml:2:"});
  expect_usage_error("[train]\nsteps = 5\n[train]\nkeep = 2\n", {"run.toml:3:"});
  expect_usage_error("[train\n", {"run.toml:1:"});
  expect_usage_error("[model]\npath = \"\xff\"\n", {"run.toml:2:"});
}

TEST(RunConfig, WrongTypesAreNamed) {
  expect_usage_error("[train]\nsteps = \"many\"\n", {"run.toml:2:1", "train.steps must be an integer, not a string"});
  expect_usage_error("[train]\nsteps = 1e3\n", {"train.steps", "write 1000"});
  expect_usage_error("[train]\nsteps = 1.5\n", {"an integer, not a float"});
  expect_usage_error("[optimizer]\nlr = \"1e-4\"\n", {"optimizer.lr must be a number, not a string"});
  expect_usage_error("[data]\npack = 1\n", {"data.pack must be true or false, not an integer"});
  expect_usage_error("[data]\neval = 5\n", {"data.eval must be a string or a list of strings", "not an integer"});
  expect_usage_error("[optimizer]\nbetas = [0.9, true]\n", {"optimizer.betas must be a list of numbers"});
  expect_usage_error("[model]\npath = 2024-01-01\n", {"model.path must be a string", "not a date or time"});
  expect_usage_error("train = 5\n", {"\"train\" must be a section", "steps"});
  expect_usage_error("[optimizer.lr]\nx = 1\n", {"optimizer.lr must be a number, not a table"});
}

TEST(RunConfig, IntegersMayStandForNumbers) {
  EXPECT_EQ(parse("[optimizer]\nmax_angle = 60\nclip_norm = 0\n").optimizer.max_angle, 60.0);
  EXPECT_EQ(parse("[optimizer]\nbetas = [0, 0.5]\n").optimizer.betas[0], 0.0);
}

TEST(RunConfig, OnePrefixNeedsNoList) {
  EXPECT_EQ(parse("[data]\ntrain = \"data/a\"\n").data.train, (std::vector<std::string>{"data/a"}));
  EXPECT_EQ(parse("[data]\ntrain = [\"a\", \"b\"]\n").data.train, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(parse("", {"data.train=data/a"}).data.train, (std::vector<std::string>{"data/a"}));
  EXPECT_EQ(parse("", {"data.train=a,b", "data.weights=7,3"}).data.weights, (std::vector<double>{7.0, 3.0}));
  EXPECT_EQ(parse("").general_ratio(), 0.0);
  EXPECT_EQ(parse("", {"data.general=web"}).general_ratio(), 0.1);
}

TEST(RunConfig, BlendsThatCannotBeAreRefused) {
  expect_usage_error("[data]\ntrain = []\n", {"run.toml:2:1", "data.train is empty"});
  expect_usage_error("[data]\ntrain = [\"a\", \"\"]\n", {"data.train", "not empty"});
  expect_usage_error("[data]\ntrain = [\"a\", \"b\", \"a\"]\n", {"data.train names \"a\" twice", "data.weights"});
  expect_usage_error("[data]\nweights = [1.0, 2.0]\n", {"run.toml:2:1", "2 numbers", "the 1 prefixes"});
  expect_usage_error("[data]\ntrain = [\"a\", \"b\"]\nweights = [1.0, 0.0]\n", {"data.weights", "above 0"});
  expect_usage_error("[data]\ngeneral_ratio = 1.0\n", {"data.general_ratio = 1.0"});
  expect_usage_error("[data]\ngeneral_ratio = 0.0\n", {"data.general_ratio = 0.0"});
}

TEST(RunConfig, ValuesOutOfRangeAreNamedWithTheLegalOnes) {
  expect_usage_error("[train]\nsteps = 0\n", {"run.toml:2:1", "train.steps = 0", "in [1, 2147483647]"});
  expect_usage_error("[replay]\ntau = 0.0\n", {"replay.tau = 0.0: must be in (0, 1]"});
  expect_usage_error("[replay]\ntau = nan\n", {"replay.tau = nan"});
  expect_usage_error("[optimizer]\nlr = inf\n", {"optimizer.lr = inf"});
  expect_usage_error("[optimizer]\nlr = -1e-4\n", {"must be at least 0"});
  expect_usage_error("[optimizer]\nmax_angle = 100.0\n", {"must be in (0, 90], or 180"});
  expect_usage_error("[optimizer]\nbetas = [0.9]\n", {"2 numbers, each in [0, 1)"});
  expect_usage_error("[optimizer]\nbetas = [0.9, 1.0]\n", {"2 numbers, each in [0, 1)"});
  expect_usage_error("[optimizer]\nzero_stage = 3\n", {"must be in [0, 2]"});
  expect_usage_error("[optimizer]\nname = \"sgd\"\n", {"one of \"moclip\", \"adamw\""});
  expect_usage_error("[parallel]\ntransport = \"pigeon\"\n",
                     {"one of \"auto\", \"self\", \"thread\", \"mpi\", \"nccl\", \"staged\""});
  expect_usage_error("[run]\nfolder = \"\"\n", {"run.folder = \"\": must be not empty"});
  expect_usage_error("[train]\nsteps = 5\n", {"override \"train.steps=0\"", "train.steps = 0"}, {"train.steps=0"});
  EXPECT_EQ(parse("[optimizer]\nmax_angle = 180.0\n").optimizer.max_angle, 180.0);
}

TEST(RunConfig, ValuesThatContradictEachOtherAreRefused) {
  expect_usage_error("[replay]\nk_min = 20\nk_max = 10\n", {"run.toml:2:1", "replay.k_min = 20 exceeds"});
  expect_usage_error("[replay]\nbudget = 20\n", {"replay.budget = 20 needs replay.positions"});
  expect_usage_error("[replay]\nstore = \"\"\n", {"replay.store is empty", "\"tile\" needs a store"});
  EXPECT_EQ(parse("[replay]\nstore = \"\"\nnormalization = \"full\"\n").replay.store, "");
}

TEST(RunConfig, AllProblemsAreNamedAtOnce) {
  expect_usage_error("[train]\nstep = 5\nkeep = \"x\"\n[optimizer]\nlr = -1.0\n",
                     {"train.step", "train.keep", "optimizer.lr = -1.0", "override \"a.b=1\""}, {"a.b=1"});
  std::string many = "[train]\n";
  for (int i = 0; i < 15; ++i) many += fmt::format("key{}0123456789 = 1\n", i);
  expect_usage_error(many, {"and 5 more"});
}

TEST(RunConfig, OverridesWinOverTheFileAndNeedNoQuotes) {
  const RunConfig config =
      parse("[optimizer]\nlr = 1e-4\n[run]\nfolder = \"a\"\n",
            {"optimizer.lr=2e-5", "run.folder=runs/b", "data.eval=data/a,data/b", "optimizer.betas=0.8,0.9",
             "data.pack=true", "run.folder=runs/2024-01-01", "model.path=\"quoted\""});
  EXPECT_EQ(config.optimizer.lr, 2e-5);
  EXPECT_EQ(config.run.folder, "runs/2024-01-01");
  EXPECT_EQ(config.data.eval, (std::vector<std::string>{"data/a", "data/b"}));
  EXPECT_EQ(config.optimizer.betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_TRUE(config.data.pack);
  EXPECT_EQ(config.model.path, "quoted");
}

TEST(RunConfig, OverridesThatAreNoneAreRefused) {
  expect_usage_error("", {"override \"train\"", "section.key=value"}, {"train"});
  expect_usage_error("", {"override \"train.steps=\""}, {"train.steps="});
  expect_usage_error("", {"one value is expected"}, {"train.steps=1\nother = 2"});
  expect_usage_error("", {"train.steps must be an integer"}, {"train.steps=\"5\""});
  expect_usage_error("", {"override"}, {"run.folder=\xff\xfe"});
}

TEST(RunConfig, DifferencesNameKeyAndBothValues) {
  RunConfig changed;
  changed.optimizer.lr = 2e-4;
  changed.data.eval = {"data/a"};
  const std::vector<std::string> expected = {"data.eval: [] -> [\"data/a\"]", "optimizer.lr: 0.0001 -> 0.0002"};
  EXPECT_EQ(differences(RunConfig{}, changed), expected);
}

TEST(RunConfig, KeysWithoutEffectAreNoted) {
  EXPECT_TRUE(notes(RunConfig{}).empty());
  const auto note_of = [](const std::vector<std::string>& overrides) {
    const auto lines = notes(parse("", overrides));
    return lines.empty() ? std::string("none") : lines.front();
  };
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"optimizer.eps=1e-6"}, "optimizer.eps"},
      {{"optimizer.name=adamw", "optimizer.max_angle=60"}, "optimizer.max_angle"},
      {{"optimizer.name=adamw", "optimizer.angle_scope=global"}, "optimizer.angle_scope"},
      {{"optimizer.name=adamw", "optimizer.obtuse=drop"}, "optimizer.obtuse"},
      {{"optimizer.max_angle=180", "optimizer.obtuse=drop"}, "optimizer.obtuse"},
      {{"replay.normalization=token", "replay.tile_tokens=16"}, "replay.tile_tokens"},
      {{"replay.normalization=full", "replay.negatives=16"}, "replay.negatives"},
      {{"replay.normalization=full", "replay.store=\"\"", "train.probe_every=5"}, "train.probe_every"},
      {{"replay.positions=last"}, "replay.positions"},
      {{"train.seed=2"}, "train.seed"},
      {{"data.shuffle=false", "data.seed=2"}, "data.seed"},
      {{"data.general_ratio=0.2"}, "data.general_ratio"},
      {{"train.epochs=1", "train.steps=5"}, "train.steps"},
      {{"data.eval=data/a"}, "data.eval"},
      {{"train.eval_every=5"}, "train.eval_every"},
      {{"schedule.decay=constant", "schedule.min_lr_ratio=0.5"}, "schedule.min_lr_ratio"},
      {{"parallel.sequence_parallel=true"}, "parallel.sequence_parallel"},
  };
  for (const auto& [overrides, key] : cases) {
    EXPECT_TRUE(note_of(overrides).starts_with(key + " = ")) << key << ": " << note_of(overrides);
  }
  EXPECT_EQ(note_of({"optimizer.name=adamw", "optimizer.eps=1e-6"}), "none");
  EXPECT_EQ(note_of({"train.seed=2", "replay.negatives=8"}), "none");
  EXPECT_EQ(note_of({"parallel.tensor=2", "parallel.sequence_parallel=true"}), "none");
}

TEST(RunConfig, TypedChoicesFollowTheKeys) {
  const RunConfig config = changed_config();
  EXPECT_EQ(config.normalization(), Normalization::kToken);
  const TopKOptions top_k = config.top_k_options();
  EXPECT_EQ(top_k.tau, 0.98);
  EXPECT_EQ(top_k.k_max, 256);
  EXPECT_EQ(top_k.positions, PositionPolicy::kBucket);
  EXPECT_EQ(top_k.seed, 7U);
  EXPECT_TRUE(top_k.log_probs);
  const OptimizerOptions optimizer = config.optimizer_options();
  EXPECT_EQ(optimizer.name, "adamw");
  EXPECT_EQ(optimizer.beta2, 0.999);
  EXPECT_EQ(optimizer.angle_scope, AngleScope::kGlobal);
  EXPECT_EQ(optimizer.obtuse, Obtuse::kProject);
  EXPECT_EQ(optimizer.zero_stage, 2);
  const ScheduleOptions schedule = config.schedule_options(500);
  EXPECT_EQ(schedule.total_steps, 500);
  EXPECT_EQ(schedule.warmup_steps, 20);
  EXPECT_EQ(schedule.decay, Decay::kLinear);
}

TEST(RunConfig, EpochsGiveSteps) {
  RunConfig config;
  EXPECT_EQ(total_steps(config, 1000), 100);
  config.train.epochs = 2.5;
  EXPECT_EQ(total_steps(config, 1000), 79);  // 2500 / 32 = 78.1
  EXPECT_EQ(total_steps(config, 1), 1);
  config.data.general = {"web"};  // of the 32 samples of a step, 8 are others
  config.data.general_ratio = 0.25;
  EXPECT_EQ(total_steps(config, 1000), 105);
  config.data.general.clear();
  config.train.epochs = 1e300;
  expect_error(ErrorKind::kUsage, {"train.epochs", "too many"}, [&] { (void)total_steps(config, 1000); });
}

TEST(RunConfig, AMissingFileSaysHowToMakeOne) {
  const TemporaryFolder folder;
  const auto path = folder / "absent.toml";
  expect_error(ErrorKind::kUsage, {path.string(), "reprise init"}, [&] { (void)read_run_config(path, {}); });
  write_file_atomically(path, "[train]\nsteps = 7\n");
  EXPECT_EQ(read_run_config(path, {}).train.steps, 7);
  EXPECT_EQ(read_run_config(path, {"train.steps=8"}).train.steps, 8);
}

/// Every run file that is shipped; Slurm scripts beside them are no run files.
TEST(RunConfig, ShippedRunFilesAreValid) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(REPRISE_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".toml") continue;
    EXPECT_NO_THROW((void)read_run_config(entry.path(), {})) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 2);
}

}  // namespace
}  // namespace reprise
