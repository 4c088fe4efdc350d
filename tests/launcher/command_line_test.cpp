#include <gtest/gtest.h>

#include "tests/support/program_fixture.hpp"

// The command line as a person meets it: helps, slips, and every command that computes nothing.

namespace reprise {
namespace {

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

void expect_ending(const ProgramResult& result, int exit_code, const std::vector<std::string>& parts) {
  EXPECT_EQ(result.exit_code, exit_code) << result.printed;
  for (const std::string& part : parts) {
    EXPECT_NE(result.printed.find(part), std::string::npos) << part << " is not in\n" << result.printed;
  }
}

TEST(CommandLine, EveryCommandHasAHelp) {
  const ProgramFixture program;
  expect_ending(program.run({"--version"}), 0, {"reprise "});
  const ProgramResult help = program.run({"--help"});
  expect_ending(help, 0, {"mpirun -n 2", "Exit codes"});
  for (const char* name :
       {"doctor", "init", "check", "collect", "train", "eval", "generate", "export", "store", "checkpoint"}) {
    EXPECT_NE(help.printed.find(fmt::format("\n  {} ", name)), std::string::npos) << name;
    expect_ending(program.run({name, "--help"}), 0, {"Usage: reprise", name, "xample"});
  }
  for (const char* name : {"info", "verify", "show"})
    expect_ending(program.run({"store", name, "--help"}), 0, {"STORE"});
  for (const char* name : {"list", "verify"}) expect_ending(program.run({"checkpoint", name, "--help"}), 0, {"RUN"});
  EXPECT_EQ(occurrences(program.run({"--help"}, 2).printed, "Usage"), 1U) << "once, not by every rank";
}

TEST(CommandLine, SlipsAreNamed) {
  const ProgramFixture program;
  expect_ending(program.run({"trian"}), 2, {"error: unknown command \"trian\"; did you mean \"train\"?"});
  expect_ending(program.run({}), 2, {"error:", "reprise --help"});
  expect_ending(program.run({"train"}), 2, {"RUN.toml is required", "reprise train --help"});
  expect_ending(program.run({"train", "run.toml", "--fesh"}), 2, {"--fesh"});
  expect_ending(program.run({"store"}), 2, {"reprise store --help"});
  expect_ending(program.run({"store", "show", "x"}), 2, {"reprise store show --help"});
  expect_ending(program.run({"train", "run.toml", "--ranks", "0"}), 2, {"--ranks"});
  expect_ending(program.run({"eval", "--model", "x", "--data", "y", "--dtype", "int4"}), 2, {"int4", "bfloat16"});
  expect_ending(program.run({"generate", "--model", "x"}), 2, {"--data PREFIX, --prompts FILE or --prompt IDS"});
}

TEST(CommandLine, AMisspeltKeyIsNamedOnceOnAnyNumberOfRanks) {
  const ProgramFixture program;
  const auto file = program.folder / "run.toml";
  write_file_atomically(file, "[optimizer]\nmax_angel = 60.0\n");
  for (const char* name : {"check", "collect", "train"}) {
    for (const int ranks : {1, 2}) {
      const ProgramResult result = program.run({name, file}, ranks);
      expect_ending(result, 2,
                    {"run.toml:2:1: unknown key \"optimizer.max_angel\"; did you mean \"optimizer.max_angle\"?"});
      EXPECT_EQ(occurrences(result.printed, "max_angel"), 1U) << result.printed;
    }
  }
}

TEST(CommandLine, WhatAllRanksFindIsSaidOnceUnderMpirun) {
  ProgramFixture program;
  program.config.model.path = program.folder / "nowhere";
  const ProgramResult result = program.train(2);
  expect_ending(result, 2, {"error: "});
  EXPECT_EQ(occurrences(result.printed, "nowhere"), 1U) << result.printed;
  EXPECT_EQ(occurrences(result.printed, "error: rank"), 0U) << result.printed;
}

TEST(CommandLine, WhatOneRankFindsEndsAllOfThemAndIsSaidByIt) {
  ProgramFixture program;
  const auto good = program.run_words("train");
  const std::string bad = program.folder / "bad.toml";
  write_file_atomically(bad, "[train]\nstep = 5\n");
  std::vector<std::string> words = {REPRISE_MPIEXEC, "-n", "1", REPRISE_PROGRAM};
  words.insert(words.end(), good.begin(), good.end());
  for (const std::string& word : {std::string(":"), std::string("-n"), std::string("1"), std::string(REPRISE_PROGRAM),
                                  std::string("train"), bad}) {
    words.push_back(word);
  }
  const ProgramResult result = run_program(words, program.options());
  expect_ending(result, 2, {"error: rank 1: ", "did you mean \"train.steps\"?"});
  EXPECT_EQ(occurrences(result.printed, "error:"), 1U) << result.printed;
}

TEST(CommandLine, TransportsThatContradictTheLauncherAreRefused) {
  ProgramFixture program;
  expect_ending(program.train(2, "", {"--ranks", "2"}), 2, {"--ranks 2"});
  expect_ending(program.train(2, "", {"parallel.transport=self"}), 2, {"started 2 processes"});
  program.config.parallel.transport = "thread";
  program.config.parallel.tensor = 2;
  program.config.train.steps = 1;
  expect_ending(program.train(1), 0, {"tensor 2 x data 1"});
}

TEST(CommandLine, InitWritesARunFileThatCheckTakes) {
  const ProgramFixture program;
  const std::string file = program.folder / "new.toml";
  const std::vector<std::string> words = {"init",
                                          file,
                                          fmt::format("model.path={}", program.config.model.path),
                                          fmt::format("data.train={}", program.config.data.train.front()),
                                          fmt::format("run.folder={}", program.config.run.folder),
                                          fmt::format("replay.store={}", (program.folder / "store").string()),
                                          "data.sequence_length=32"};
  expect_ending(program.run(words), 0, {"wrote", file});
  const std::string text = read_text_file(file, ErrorKind::kUsage);
  EXPECT_NE(text.find("# highest learning rate"), std::string::npos);
  expect_ending(program.run({"check", file}), 0,
                {"parameters", "samples", "to be collected", "activations", "ready to run"});
  expect_ending(program.run(words), 2, {file, "exists already"});
  EXPECT_EQ(read_text_file(file, ErrorKind::kUsage), text);
  expect_ending(program.run({"init", program.folder / "nowhere" / "new.toml"}), 8, {"nowhere"});
  expect_ending(program.run({"init", program.folder / "bad.toml", "model.paht=x"}), 2, {"model.path"});
  EXPECT_FALSE(std::filesystem::exists(program.folder / "bad.toml"));
}

TEST(CommandLine, CheckPlansAnyWorldInTextAndJson) {
  ProgramFixture program;
  program.config.parallel.tensor = 2;
  const auto words = [&](const std::vector<std::string>& more) {
    auto all = program.run_words("check", more);
    all.erase(std::find(all.begin(), all.end(), "--threads"), std::find(all.begin(), all.end(), "--threads") + 2);
    return all;
  };
  expect_ending(program.run(words({"--world", "8"})), 0, {"8 ranks = tensor 2 x data 4", "all_reduce", "world"});
  const ProgramResult json = program.run(words({"--world", "4", "--json"}));
  ASSERT_EQ(json.exit_code, 0) << json.printed;
  const auto report = nlohmann::json::parse(json.printed);
  EXPECT_EQ(report["layout"]["data"], 2);
  EXPECT_EQ(report["data"][0]["samples"], 8);
  EXPECT_GT(report["memory"]["total"], 0);
  expect_ending(program.run(words({"--world", "3"})), 2, {"3 ranks do not fit", "no value of parallel.tensor fits"});
  expect_ending(program.run(words({"--world", "4", "parallel.tensor=3"})), 2, {"parallel.tensor that fit: 1, 2, 4"});
  expect_ending(program.run(words({"parallel.tensor=3", "--world", "3"})), 2, {"num_attention_heads = 4"});
  expect_ending(program.run(words({"data.train=nowhere"})), 3, {"nowhere"});
  EXPECT_FALSE(std::filesystem::exists(program.config.run.folder)) << "check writes nothing";
}

TEST(CommandLine, DoctorLooksAtTheMachineTheRanksAndThePaths) {
  ProgramFixture program;
  const auto file = program.folder / "run.toml";
  write_file_atomically(file, to_toml(program.config));
  expect_ending(program.run({"doctor"}), 0, {"cores", "memory", "Open MPI", "HDF5", "OpenBLAS", "open files"});
  expect_ending(program.run({"doctor", file}), 0, {"model.path", "run.folder"});
  const ProgramResult ranks = program.run({"doctor"}, 2);
  expect_ending(ranks, 0, {"started by mpirun as rank 0 of 2", "threads"});
  EXPECT_EQ(occurrences(ranks.printed, "machine\n"), 1U) << ranks.printed;
  program.config.data.train = {program.folder / "nowhere"};
  write_file_atomically(file, to_toml(program.config));
  expect_ending(program.run({"doctor", file}), 2, {"problem: data.train"});
  expect_ending(program.run({"doctor", file}, 2), 2, {"problem: data.train"});
}

TEST(CommandLine, StoresAndCheckpointsAreShownAndVerified) {
  ProgramFixture program;
  program.config.replay.store = program.folder / "store";
  program.config.replay.normalization = "tile";
  program.config.train.steps = 2;
  const std::string store = program.config.replay.store, run = program.config.run.folder;
  ASSERT_EQ(program.collect().exit_code, 0);
  expect_ending(program.run({"store", "info", store}), 0, {"ids in a set", "bytes a position", "#", "tokenizer"});
  const auto info = nlohmann::json::parse(program.run({"store", "info", store, "--json"}).printed);
  EXPECT_EQ(info["samples"], 8);
  EXPECT_GT(info["share_of_bfloat16_logits"], 0.0);
  expect_ending(program.run({"store", "verify", store}), 0, {"sound"});
  expect_ending(program.run({"store", "show", store, "0"}), 0, {"sample 0", "position", "covered"});
  expect_ending(program.run({"store", "show", store, "99"}), 2, {"no sample 99"});
  expect_ending(program.run({"store", "info", program.folder / "nowhere"}), 3, {"nowhere"});
  auto check = program.run_words("check");
  check.resize(2);
  expect_ending(program.run(check), 0, {"belongs to this run"});
  check.push_back("replay.tau=0.5");
  expect_ending(program.run(check), 4, {"replay.tau: the store has 0.95, this run 0.5"});

  ASSERT_EQ(program.train().exit_code, 0);
  expect_ending(program.run({"checkpoint", "list", run}), 0, {"tensor 1 x data 1", "latest"});
  EXPECT_EQ(nlohmann::json::parse(program.run({"checkpoint", "list", run, "--json"}).printed)[0]["step"], 2);
  expect_ending(program.run({"checkpoint", "verify", run}), 0, {"sound"});
  const auto checkpoint = std::filesystem::path(run) / "checkpoints" / "step-00000002";
  expect_ending(program.run({"checkpoint", "verify", checkpoint}), 0, {"sound"});
  for (const auto& [folder, suffix] : {std::pair{checkpoint, ".safetensors"}, {std::filesystem::path(store), ".h5"}}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == suffix) std::filesystem::resize_file(entry.path(), entry.file_size() - 7);
    }
  }
  expect_ending(program.run({"checkpoint", "verify", run}), 5, {"DAMAGED", "1 of 1"});
  expect_ending(program.run({"store", "verify", store}), 3, {"problem", ".h5"});
  expect_ending(program.run({"checkpoint", "list", program.folder / "nowhere"}), 5, {"nowhere/checkpoints"});
}

}  // namespace
}  // namespace reprise
