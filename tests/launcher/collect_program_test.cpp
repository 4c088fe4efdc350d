#include <gtest/gtest.h>

#include "launcher/data_loader.hpp"
#include "loss/replay_store.hpp"
#include "tests/support/program_fixture.hpp"

// Stage 0 as a process, and training from what it has collected.

namespace reprise {
namespace {

/// `units` units of short samples, the last one not full.
struct CollectProgram : ProgramFixture {
  explicit CollectProgram(std::int64_t units = 2)
      : ProgramFixture(RandomDocumentsOptions{.count = units * kSamplesPerUnit - 5, .longest = 5}) {
    config.replay.store = folder / "store";
    config.replay.normalization = "tile";
    config.replay.tile_tokens = 2;
    config.replay.tau = 0.6;
    config.replay.k_max = 60;
    config.train.micro_batch = 32;
    config.train.probe_every = 2;
  }
};

/// Everything recorded of a sample, for comparison.
using Record = std::tuple<std::vector<std::uint32_t>, std::vector<std::uint32_t>, std::vector<std::int64_t>,
                          std::vector<std::uint32_t>, std::vector<float>>;
std::map<std::uint64_t, Record> read_store(const std::filesystem::path& folder) {
  const ReplayStoreReader store(folder);
  std::map<std::uint64_t, Record> records;
  for (const std::uint64_t id : store.sample_ids()) {
    const SampleRecords sample = store.read(id);
    records[id] = {sample.position, sample.gold, sample.id_begin, sample.ids, sample.mass};
  }
  return records;
}

TEST(CollectProgram, RecordsEveryTargetReportsAndIsDoneOnce) {
  std::map<std::uint64_t, Record> first;
  for (const auto& [ranks, tensor] : {std::pair{1, 1}, {2, 2}, {2, 1}, {3, 1}}) {
    CollectProgram program;
    program.config.parallel.tensor = tensor;
    const ProgramResult result = program.collect(ranks);
    ASSERT_EQ(result.exit_code, 0) << result.printed;
    for (const char* part : {"median 50 %", "probability covered", "next token outside", "bytes a position"}) {
      EXPECT_NE(result.printed.find(part), std::string::npos) << part << " is not in\n" << result.printed;
    }
    EXPECT_NE(result.printed.find("warning: for"), std::string::npos) << "a random model does not know this data";
    EXPECT_TRUE(verify_store(program.config.replay.store).empty());
    const auto records = read_store(program.config.replay.store);
    ASSERT_EQ(records.size(), program.documents.tokens.size());
    if (first.empty()) first = records;
    std::int64_t differing = 0;  // layouts change logits by rounding, and so at most a rare id at a set's boundary
    for (const auto& [id, record] : records) differing += std::get<3>(record) == std::get<3>(first.at(id)) ? 0 : 1;
    EXPECT_LE(differing, 1);
    std::int64_t tokens = 0;
    for (std::size_t d = 0; d < program.documents.tokens.size(); ++d) {
      const auto& mask = program.documents.options.masks[d];
      EXPECT_EQ(std::get<0>(records.at(d)).size(),
                static_cast<std::size_t>(std::count(mask.begin() + 1, mask.end(), 1)));
      tokens += std::count(mask.begin() + 1, mask.end(), 1);
    }
    const auto statistics = nlohmann::json::parse(ReplayStoreReader(program.config.replay.store).manifest().statistics);
    EXPECT_EQ(statistics["tokens"], tokens);
    EXPECT_EQ(statistics["samples"], program.documents.tokens.size());

    const ProgramResult again = program.collect(ranks);
    EXPECT_EQ(again.exit_code, 0);
    EXPECT_NE(again.printed.find("complete already"), std::string::npos) << again.printed;
  }
}

class KilledCollectionTest : public testing::TestWithParam<std::pair<int, int>> {};  // ranks, tensor

TEST_P(KilledCollectionTest, GoesOnWithTheSameIdsAndStatistics) {
  const auto [ranks, tensor] = GetParam();
  const int data = ranks / tensor;
  CollectProgram program(20);
  program.config.parallel.tensor = tensor;
  ASSERT_EQ(program.collect(ranks).exit_code, 0);
  const auto whole = read_store(program.config.replay.store);
  const std::string statistics = ReplayStoreReader(program.config.replay.store).manifest().statistics;

  program.config.replay.store = program.folder / "killed";
  // The first commit is behind eight units a rank.
  const std::string fault = fmt::format("collect.unit={},rank={}", 9 * data, 0);
  EXPECT_NE(program.collect(ranks, fault).exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(program.folder / "killed/manifest.json"));
  EXPECT_EQ(program.train(ranks).exit_code, 3) << "an unfinished store trains nobody";
  const ProgramResult resumed = program.collect(ranks);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.printed;
  EXPECT_TRUE(verify_store(program.config.replay.store).empty());
  EXPECT_TRUE(read_store(program.config.replay.store) == whole);
  auto resumed_statistics = nlohmann::json::parse(ReplayStoreReader(program.config.replay.store).manifest().statistics);
  auto whole_statistics = nlohmann::json::parse(statistics);
  for (auto* json : {&resumed_statistics, &whole_statistics}) {  // sums of the same masses in another order
    EXPECT_GT(json->at("mass"), 0.0);
    json->erase("mass");
    json->erase("mass_mean");
  }
  EXPECT_EQ(resumed_statistics, whole_statistics);
}
INSTANTIATE_TEST_SUITE_P(Layouts, KilledCollectionTest,
                         testing::Values(std::pair{1, 1}, std::pair{2, 2}, std::pair{2, 1}));

TEST(CollectProgram, AStopSignalCommitsExits75AndAnotherLayoutCannotGoOn) {
  CollectProgram program(6);
  const ProgramResult stopped = program.collect(2, "collect.unit=3,rank=1,action=stop");
  EXPECT_EQ(stopped.exit_code, 75) << stopped.printed;
  const ProgramResult other = program.collect(1);
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.printed.find("same number of ranks"), std::string::npos) << other.printed;
  const ProgramResult tau = program.collect(2, "", {"replay.tau=0.5"});
  EXPECT_EQ(tau.exit_code, 4) << tau.printed;
  ASSERT_EQ(program.collect(2).exit_code, 0);
  EXPECT_EQ(read_store(program.config.replay.store).size(), program.documents.tokens.size());
  EXPECT_EQ(program.collect(1, "", {"--fresh", "replay.tau=0.5"}).exit_code, 0);
}

TEST(CollectProgram, AModelThatIsNotFiniteEndsTheCollectionWith6) {
  CollectProgram program;
  make_model_folder(program.config.model.path, program.model, {.norm_value = std::numeric_limits<float>::quiet_NaN()});
  for (const int ranks : {1, 2}) {
    const ProgramResult result = program.collect(ranks, "", {"--fresh"});
    EXPECT_EQ(result.exit_code, 6) << result.printed;
    EXPECT_FALSE(std::filesystem::exists(program.folder / "store/manifest.json"));
  }
}

class StoreTrainingTest : public testing::TestWithParam<std::string> {};  // normalization

TEST_P(StoreTrainingTest, LearnsProbesResumesAndDoesNotDependOnBatching) {
  CollectProgram program;
  program.config.replay.normalization = GetParam();
  program.config.replay.negatives = GetParam() == "full" ? 0 : 16;
  program.config.optimizer.name = "moclip";
  program.config.train.steps = 6;
  program.config.train.checkpoint_every = 2;
  ASSERT_EQ(program.collect(2).exit_code, 0);
  program.config.run.folder = program.folder / "whole";
  const ProgramResult whole = program.train(2);
  ASSERT_EQ(whole.exit_code, 0) << whole.printed;
  program.config.run.folder = program.folder / "killed";
  EXPECT_NE(program.train(2, "train.step=4,rank=1").exit_code, 0);
  const ProgramResult resumed = program.train(2);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.printed;
  const auto lines = comparable_metrics(program.folder / "whole");
  EXPECT_EQ(comparable_metrics(program.folder / "killed"), lines);
  EXPECT_EQ(checkpoint_tensors(program.folder / "killed", 6), checkpoint_tensors(program.folder / "whole", 6));
  for (std::size_t i = 1; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].contains("out_of_set_mass"), i % 2 == 0) << lines[i];
  }
  EXPECT_GT(lines[2]["out_of_set_mass"], 0.05);
  EXPECT_LT(lines[2]["out_of_set_mass"], 0.9);

  program.config.run.folder = program.folder / "other";
  program.config.train.micro_batch = 3;
  program.config.data.pack = true;
  program.config.train.steps = 2;
  program.config.schedule.decay = "constant";
  ASSERT_EQ(program.train(1).exit_code, 0);
  const auto other = comparable_metrics(program.folder / "other");
  EXPECT_NEAR(other[1]["loss"].get<double>(), lines[1]["loss"].get<double>(), 1e-5);
  EXPECT_EQ(other[1]["tokens"], lines[1]["tokens"]);
}
INSTANTIATE_TEST_SUITE_P(Heads, StoreTrainingTest, testing::Values("token", "tile", "full"));

/// Two prefixes with recorded sets and one of general data, in one run.
struct BlendProgram : CollectProgram {
  BlendProgram() {
    RandomDocumentsOptions options;
    options.count = 9;
    options.seed = 77;
    general = random_documents(options);
    make_dataset(folder / "general", general.tokens, general.options);
    config.data.train = {folder / "data", folder / "held_out"};
    config.data.weights = {0.75, 0.25};
    config.data.general = {folder / "general"};
    config.data.general_ratio = 0.3;
    config.train.steps = 6;
    config.train.checkpoint_every = 2;
  }
  RandomDocuments general;
};

TEST(BlendedTraining, CollectsAllPrefixesResumesBitForBitAndGuardsItsData) {
  BlendProgram program;
  std::vector<std::string> words = program.run_words("check");
  words.resize(2);  // it takes no threads
  const ProgramResult check = program.run(words);
  for (const char* part : {"share", "epochs", "52.5 %", "17.5 %", "30.0 %"}) {
    EXPECT_NE(check.printed.find(part), std::string::npos) << part << " is not in\n" << check.printed;
  }
  ASSERT_EQ(program.collect(2).exit_code, 0);
  const auto records = read_store(program.config.replay.store);
  EXPECT_EQ(records.size(), program.documents.tokens.size() + 5);
  EXPECT_EQ(records.rbegin()->first, (std::uint64_t{1} << 48) + 4);

  program.config.run.folder = program.folder / "whole";
  const ProgramResult whole = program.train(2);
  ASSERT_EQ(whole.exit_code, 0) << whole.printed;
  EXPECT_NE(whole.printed.find("30.0 % of each batch"), std::string::npos) << whole.printed;
  program.config.run.folder = program.folder / "killed";
  EXPECT_NE(program.train(2, "train.step=4,rank=1").exit_code, 0);
  ASSERT_EQ(program.train(2).exit_code, 0);
  const auto lines = comparable_metrics(program.folder / "whole");
  EXPECT_EQ(comparable_metrics(program.folder / "killed"), lines);
  EXPECT_EQ(checkpoint_tensors(program.folder / "killed", 6), checkpoint_tensors(program.folder / "whole", 6));

  program.config.run.folder = program.folder / "alone";  // the same samples on one rank
  ASSERT_EQ(program.train(1).exit_code, 0);
  const auto alone = comparable_metrics(program.folder / "alone");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!lines[i].contains("tokens")) continue;
    EXPECT_EQ(alone[i]["tokens"], lines[i]["tokens"]);
    EXPECT_NEAR(alone[i]["loss"].get<double>(), lines[i]["loss"].get<double>(), 1e-4);
  }

  const ProgramResult ratio = program.train(1, "", {"train.steps=8", "data.general_ratio=0.2"});
  EXPECT_EQ(ratio.exit_code, 2) << ratio.printed;
  EXPECT_NE(ratio.printed.find("data.general_ratio"), std::string::npos) << ratio.printed;
  program.general.tokens[1][0] ^= 1;
  make_dataset(program.folder / "general", program.general.tokens, program.general.options);
  const ProgramResult general = program.train(1, "", {"train.steps=8"});
  EXPECT_EQ(general.exit_code, 4) << general.printed;
  EXPECT_NE(general.printed.find("other data than data.general"), std::string::npos) << general.printed;
}

TEST(StoreTraining, RefusesAStoreOfSomethingElseAndNamesIt) {
  CollectProgram program;
  ASSERT_EQ(program.collect().exit_code, 0);
  const auto refused = [&](const std::vector<std::string>& overrides, const std::string& key) {
    for (const int ranks : {1, 2}) {
      const ProgramResult result = program.train(ranks, "", overrides);
      EXPECT_EQ(result.exit_code, 4) << result.printed;
      EXPECT_NE(result.printed.find(key), std::string::npos) << key << " is not in\n" << result.printed;
    }
  };
  refused({"replay.tau=0.7"}, "replay.tau");
  refused({"replay.k_max=61"}, "replay.k_max");
  refused({"data.seed=2"}, "data.seed");
  refused({"replay.positions=\"last\"", "replay.budget=2"}, "replay.positions");
  refused({"data.sequence_length=64"}, "data.sequence_length");
  EXPECT_EQ(program.train(1, "", {"data.sequence_length=3", "train.steps=1", "model.dtype=bfloat16"}).exit_code, 0);

  make_model_folder(program.config.model.path, program.model, {.seed = 5});
  refused({}, "model");
  make_model_folder(program.config.model.path, program.model);
  write_file_atomically(std::filesystem::path(program.config.model.path) / "tokenizer.json",
                        R"({"model": {"vocab": {}}})");
  refused({}, "tokenizer");
}

}  // namespace
}  // namespace reprise
