#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "launcher/check_report.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/store_provenance.hpp"
#include "launcher/training_data.hpp"
#include "parallel/self_communicator.hpp"
#include "tests/launcher/run_steps.hpp"
#include "tests/launcher/step_oracle.hpp"
#include "tests/support/expect_error.hpp"

// What is promised of data, store and vocabulary that do not belong together or are not as they should be: one test
// for each promise, named by it.

namespace reprise {
namespace {

/// A run with a store that belongs to it.
struct StoredFixture : RunFixture {
  StoredFixture() {
    config.replay.normalization = "tile";
    config.replay.store = folder / "store";
    make_store(*this);
  }
};

/// What both a check and a run say.
void expect_refused(const RunConfig& config, ErrorKind kind, const std::vector<std::string>& parts) {
  expect_error(kind, parts, [&] { (void)make_check_report(config, 1); });
  const auto world = make_self_communicator();
  Session session(*world, 1, false, 1);
  expect_error(kind, parts, [&] {
    const std::int64_t vocab_size = read_decoder_config(config.model.path).vocab_size;
    const TrainingData training(config, vocab_size, session.groups());
    for (std::int64_t step = 0; step < 3; ++step) (void)training.prepare(step);
  });
}

TEST(VocabularyPromises, AStoreOfAnotherVocabularyIsRefusedWithBothSizes) {
  StoredFixture fixture;
  fixture.model.vocab_size = 100;
  make_model_folder(fixture.config.model.path, fixture.model);
  expect_refused(fixture.config, ErrorKind::kStoreMismatch, {"vocab_size: the store has 96, this run 100"});
}

TEST(VocabularyPromises, IdsBeyondTheModelAreRefusedWithTheirPlaceAndTheSize) {
  RunFixture fixture;
  fixture.documents.tokens[3][1] = 96;
  make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
  expect_refused(fixture.config, ErrorKind::kData, {"data.bin", "token 1 of document 3 is 96", "[0, 96)"});
}

TEST(VocabularyPromises, AVocabularyThatTensorDoesNotDivideIsShardedUnevenly) {
  RunFixture fixture;
  fixture.model.vocab_size = 97;
  make_model_folder(fixture.config.model.path, fixture.model);
  const StepMetrics whole = run_steps(fixture, 1, 1, 1, 1e-3).metrics[0];
  for (const int tensor : {2, 4}) EXPECT_NEAR(run_steps(fixture, tensor, 1, 1, 1e-3).metrics[0].loss, whole.loss, 2e-6);
}

TEST(StorePromises, EachHashThatDiffersIsNamed) {
  const std::vector<std::pair<std::string, std::function<void(RunFixture&)>>> changes = {
      {"model (weights",
       [](RunFixture& fixture) { make_model_folder(fixture.config.model.path, fixture.model, {.seed = 5}); }},
      {"chat template",
       [](RunFixture& fixture) {
         write_file_atomically(std::filesystem::path(fixture.config.model.path) / "chat_template.jinja", "{{ 1 }}");
       }},
      {"data (tokens and masks): ",
       [](RunFixture& fixture) {
         fixture.documents.tokens[0][0] ^= 1;
         make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
       }},
      {"data (tokens and masks): ",
       [](RunFixture& fixture) {
         fixture.documents.options.masks[0].back() ^= 1;
         make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
       }},
  };
  for (const auto& [key, change] : changes) {
    StoredFixture fixture;
    (void)make_check_report(fixture.config, 1);
    change(fixture);
    expect_refused(fixture.config, ErrorKind::kStoreMismatch, {key, "the store has", "this run"});
  }
}

/// A store whose manifest fits but whose samples do not: every sample is compared again when it is read.
TEST(StorePromises, ASampleOfOtherTokensIsNamedWhenItIsRead) {
  StoredFixture fixture;
  const StoreProvenance provenance = store_provenance(fixture.config);
  const ReplayStoreReader whole(fixture.folder / "store");
  fixture.config.replay.store = fixture.folder / "forged";
  ReplayStoreWriter writer(fixture.folder / "forged", 0, provenance);
  for (const std::uint64_t id : whole.sample_ids()) {
    SampleRecords records = whole.read(id);
    if (id == 2) records.sample_hash ^= 1;
    writer.append(records);
  }
  writer.commit(1);
  finish_store(fixture.folder / "forged", provenance, 1, "{}");
  const auto world = make_self_communicator();
  Session session(*world, 1, false, 1);
  const TrainingData training(fixture.config, fixture.model.vocab_size, session.groups());
  expect_error(ErrorKind::kStoreMismatch, {"document 2", "not those that the store was collected from"},
               [&] { (void)training.prepare(0); });
}

TEST(DataPromises, WhatTrainsNothingOrIsCutIsCountedAndNeverDropped) {
  RunFixture fixture;
  auto& documents = fixture.documents;
  documents.tokens = {{1, 2, 3, 4, 5, 6, 7, 8, 9}, {}, {5}, {6, 7}, {8, 9, 10, 11}, {4, 5, 6, 7, 8}};
  documents.options.masks = {{0, 1, 1, 1, 1, 1, 1, 1, 1}, {}, {1}, {1, 0}, {0, 0, 0, 0}, {0, 0, 0, 0, 1}};
  make_dataset(fixture.folder / "data", documents.tokens, documents.options);
  fixture.config.data.sequence_length = 3;
  fixture.config.train.global_batch = 6;
  const CheckReport report = make_check_report(fixture.config, 1);
  const DataStatistics& statistics = report.data.at(0).statistics;
  EXPECT_EQ(statistics.samples, 6);
  EXPECT_EQ(statistics.truncated, 2);        // the first and the last
  EXPECT_EQ(statistics.without_targets, 5);  // empty, one token, masks of zeros, and a target behind the cut
  EXPECT_EQ(statistics.targets, 3);
  EXPECT_EQ(statistics.longest, 9);
  const auto says = [](const std::string& note) { return note.starts_with("5 of 6 training samples have no target"); };
  EXPECT_TRUE(std::any_of(report.notes.begin(), report.notes.end(), says));
  EXPECT_EQ(run_steps(fixture, 1, 2, 1, 1e-3).metrics[0].tokens, 3);
}

TEST(DataPromises, EmptyFilesAreRefusedByName) {
  RunFixture fixture;
  for (const char* suffix : {".idx", ".bin"}) {
    make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
    write_bytes(fixture.folder / fmt::format("data{}", suffix), "");
    expect_refused(fixture.config, ErrorKind::kData, {fmt::format("data{}", suffix)});
  }
  std::filesystem::remove(fixture.folder / "data.mask.bin");
  make_dataset(fixture.folder / "data", {});
  expect_refused(fixture.config, ErrorKind::kData, {"data", "none of the 0 documents"});
}

TEST(DataPromises, ABlendIsReportedPrefixByPrefix) {
  RunFixture fixture({.count = 20});
  fixture.config.data.train = {fixture.folder / "data", fixture.folder / "held_out"};  // 20 and 5 documents
  fixture.config.data.weights = {0.6, 0.4};
  fixture.config.train.steps = 10;  // of 8
  const CheckReport blend = make_check_report(fixture.config, 2);
  ASSERT_EQ(blend.data.size(), 2u);
  EXPECT_EQ(blend.data[1].role, "train");
  EXPECT_DOUBLE_EQ(blend.data[0].share, 0.6);
  EXPECT_DOUBLE_EQ(blend.data[0].epochs, 80 * 0.6 / 20);
  EXPECT_DOUBLE_EQ(blend.data[1].epochs, 80 * 0.4 / 5);
  EXPECT_DOUBLE_EQ(blend.epochs, 80.0 / 25);

  fixture.config.data.train = {fixture.folder / "data"};
  fixture.config.data.weights = {};
  fixture.config.data.general = {fixture.folder / "held_out"};
  fixture.config.data.general_ratio = 0.25;
  const CheckReport mixed = make_check_report(fixture.config, 2);
  EXPECT_EQ(mixed.data[1].role, "general");
  EXPECT_DOUBLE_EQ(mixed.data[0].share, 0.75);
  EXPECT_DOUBLE_EQ(mixed.data[1].epochs, 80 * 0.25 / 5);
  EXPECT_DOUBLE_EQ(mixed.epochs, 60.0 / 20);
  EXPECT_GE(mixed.step.micro_batches,
            3.0);  // a rank's 3 samples of the one kind in micro-batches of 2, and 1 of the other
}

}  // namespace
}  // namespace reprise
