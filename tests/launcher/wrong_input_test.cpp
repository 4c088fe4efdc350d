#include <gtest/gtest.h>

#include <set>

#include "tests/support/program_fixture.hpp"

// Wrong input, seen from outside: the exit code on any number of ranks, a message that names the cause, and nothing
// half-written.

namespace reprise {
namespace {

std::set<std::string> files_below(const std::filesystem::path& folder) {
  std::set<std::string> files;
  if (!std::filesystem::exists(folder)) return files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.insert(entry.path().lexically_relative(folder));
  }
  return files;
}

/// A defect of the input, what the message must name, and the exit code.
struct WrongInput {
  std::string name;
  std::function<void(ProgramFixture&)> spoil;
  int exit_code;
  std::vector<std::string> named;
  int ranks = 2;
};

void cut(const std::filesystem::path& path, std::uintmax_t bytes) {
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - bytes);
}

void write_config(ProgramFixture& program, const std::string& key, const nlohmann::json& value) {
  auto json = model_config_json(program.model);
  json[key] = value;
  write_file_atomically(std::filesystem::path(program.config.model.path) / "config.json", json.dump());
}

std::vector<WrongInput> wrong_inputs() {
  return {
      {"MissingModel", [](ProgramFixture& p) { p.config.model.path = p.folder / "nowhere"; }, 2, {"nowhere"}},
      {"UnsupportedFamily", [](ProgramFixture& p) { write_config(p, "model_type", "gpt2"); }, 2, {"gpt2"}},
      {"VocabularyOfOtherSize", [](ProgramFixture& p) { write_config(p, "vocab_size", 97); }, 2, {"96", "97"}},
      {"TokenizerBeyondTheModel",
       [](ProgramFixture& p) { write_file_atomically(p.folder / "model/tokenizer.json", tokenizer_json(200).dump()); },
       2,
       {"tokenizer has id 199", "96 rows"}},
      {"VocabularyBeyondTheModel", [](ProgramFixture& p) { p.config.model.vocab_size = 97; }, 2, {"97", "96 rows"}},
      {"IdOfAPaddingRow",
       [](ProgramFixture& p) {
         p.model.padding_rows = 32;
         make_model_folder(p.folder / "model", p.model);
         p.documents.tokens[3][1] = 100;
         make_dataset(p.folder / "data", p.documents.tokens, p.documents.options);
       },
       3,
       {"100", "data.bin", "96"}},
      {"HeadsThatDoNotDivide", [](ProgramFixture& p) { p.config.parallel.tensor = 3; }, 2, {"num_attention_heads"}, 3},
      {"WorldThatDoesNotFit", [](ProgramFixture& p) { p.config.parallel.tensor = 2; }, 2, {"2", "3"}, 3},
      {"BatchThatDoesNotDivide", [](ProgramFixture& p) { p.config.train.global_batch = 7; }, 2, {"global_batch"}, 2},
      {"SequenceBeyondTheModel",
       [](ProgramFixture& p) { p.config.data.sequence_length = 1000; },
       2,
       {"data.sequence_length", "256"}},
      {"MissingData", [](ProgramFixture& p) { p.config.data.train = {p.folder / "nothing"}; }, 3, {"nothing.idx"}},
      {"MissingEvaluationData", [](ProgramFixture& p) { p.config.data.eval = {p.folder / "nothing"}; }, 3, {"nothing"}},
      {"TruncatedTokens", [](ProgramFixture& p) { cut(p.folder / "data.bin", 3); }, 3, {"data.bin"}},
      {"TruncatedIndex", [](ProgramFixture& p) { cut(p.folder / "data.idx", 3); }, 3, {"data.idx"}},
      {"TruncatedMask", [](ProgramFixture& p) { cut(p.folder / "data.mask.bin", 1); }, 3, {"data.mask.bin"}},
      {"IdOutOfRange",
       [](ProgramFixture& p) {
         p.documents.tokens[3][1] = 96;
         make_dataset(p.folder / "data", p.documents.tokens, p.documents.options);
       },
       3,
       {"96", "data.bin"}},
      {"EmptyData",
       [](ProgramFixture& p) {
         std::filesystem::remove(p.folder / "data.mask.bin");
         make_dataset(p.folder / "data", {});
       },
       3,
       {"data"}},
      {"DataWithoutTargets",
       [](ProgramFixture& p) {
         for (auto& mask : p.documents.options.masks) std::fill(mask.begin(), mask.end(), std::uint8_t{0});
         make_dataset(p.folder / "data", p.documents.tokens, p.documents.options);
       },
       3,
       {"none of the 8 documents"}},
      {"MissingStore", [](ProgramFixture& p) { p.config.replay.store = p.folder / "store"; }, 3, {"store"}},
      {"RunFolderBelowAFile",
       [](ProgramFixture& p) { p.config.run.folder = p.folder / "data.idx/run"; },
       8,
       {"data.idx"}},
  };
}

class WrongInputTest : public testing::TestWithParam<std::size_t> {};

TEST_P(WrongInputTest, IsNamedAndEndsWithItsCode) {
  const WrongInput input = wrong_inputs()[GetParam()];
  ProgramFixture program;
  input.spoil(program);
  const ProgramResult result = program.train(input.ranks);
  EXPECT_EQ(result.exit_code, input.exit_code) << result.printed;
  for (const std::string& part : input.named) {
    EXPECT_NE(result.printed.find(part), std::string::npos) << part << " is not in\n" << result.printed;
  }
  for (const std::string& file : files_below(program.config.run.folder)) {
    EXPECT_FALSE(file.starts_with("checkpoints")) << file;
  }
}
INSTANTIATE_TEST_SUITE_P(Inputs, WrongInputTest, testing::Range<std::size_t>(0, wrong_inputs().size()),
                         [](const auto& input) { return wrong_inputs()[input.param].name; });

TEST(WrongInput, SamplesWithoutTargetsAreCountedAndFine) {
  ProgramFixture program;
  std::fill(program.documents.options.masks[2].begin(), program.documents.options.masks[2].end(), std::uint8_t{0});
  make_dataset(program.folder / "data", program.documents.tokens, program.documents.options);
  const ProgramResult result = program.train(2);
  EXPECT_EQ(result.exit_code, 0) << result.printed;
  EXPECT_NE(result.printed.find("1 samples have no target"), std::string::npos) << result.printed;
}

TEST(WrongInput, AFullDiskEndsWith8AndKeepsTheEarlierCheckpoint) {
  for (const int ranks : {1, 2}) {
    ProgramFixture program;
    program.config.train.steps = 2;
    ASSERT_EQ(program.train(ranks).exit_code, 0);
    program.config.train.steps = 4;
    auto options = program.options();
    options.largest_file_bytes = 16384;  // metrics and manifest fit, tensors do not
    // Ranks as threads: mpirun needs files of its own.
    const auto words = program.run_words("train", {"--ranks", std::to_string(ranks)});
    const ProgramResult full = run_program(program.command(words, 1), options);
    EXPECT_EQ(full.exit_code, 8) << full.printed;
    EXPECT_NE(full.printed.find("safetensors"), std::string::npos) << full.printed;
    for (const auto& file : files_below(program.folder / "run/checkpoints")) {
      EXPECT_TRUE(file == "LATEST" || file.starts_with("step-00000002/")) << file;
    }
    const ProgramResult room = program.train(ranks);
    EXPECT_EQ(room.exit_code, 0) << room.printed;
    EXPECT_NE(room.printed.find("going on from step 2"), std::string::npos) << room.printed;
  }
}

TEST(WrongInput, AFullDiskWhileCollectingEndsWith8AndLeavesNoFinishedStore) {
  ProgramFixture program;
  program.config.replay.store = program.folder / "store";
  auto options = program.options();
  options.largest_file_bytes = 2048;  // no shard fits
  const ProgramResult full = run_program(program.command(program.run_words("collect"), 1), options);
  EXPECT_EQ(full.exit_code, 8) << full.printed;
  EXPECT_FALSE(std::filesystem::exists(program.folder / "store/manifest.json"));
  EXPECT_EQ(program.collect().exit_code, 0);
}

TEST(WrongInput, DamagedCheckpointsArePassedOverOrRefused) {
  ProgramFixture program;
  program.config.train.checkpoint_every = 2;
  ASSERT_EQ(program.train().exit_code, 0);
  cut(program.folder / "run/checkpoints/step-00000004/rank-00000.safetensors", 5);
  const ProgramResult passed_over = program.train();
  EXPECT_EQ(passed_over.exit_code, 0) << passed_over.printed;
  EXPECT_NE(passed_over.printed.find("passed over"), std::string::npos) << passed_over.printed;
  EXPECT_NE(passed_over.printed.find("going on from step 2"), std::string::npos) << passed_over.printed;
  for (const char* step : {"step-00000002", "step-00000004"}) {
    cut(program.folder / "run/checkpoints" / step / "rank-00000.safetensors", 5);
  }
  const ProgramResult refused = program.train();
  EXPECT_EQ(refused.exit_code, 5) << refused.printed;
  EXPECT_NE(refused.printed.find("--fresh"), std::string::npos) << refused.printed;
}

}  // namespace
}  // namespace reprise
