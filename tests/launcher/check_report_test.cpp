#include "launcher/check_report.hpp"

#include <gtest/gtest.h>

#include "core/sha256.hpp"
#include "launcher/store_provenance.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

void expect_refused(ErrorKind kind, const std::vector<std::string>& parts, const RunConfig& config,
                    std::int64_t world = 1) {
  expect_error(kind, parts, [&] { (void)make_check_report(config, world); });
}

bool mentions(const std::vector<std::string>& lines, const std::string& part) {
  return std::any_of(lines.begin(), lines.end(),
                     [&](const std::string& line) { return line.find(part) != std::string::npos; });
}

TEST(CheckReport, CountsTheDataAndTheSteps) {
  RunFixture fixture({.count = 20});
  RunConfig config = fixture.config;
  config.data.sequence_length = 5;
  config.data.eval = {fixture.folder / "held_out"};
  config.train.eval_every = 1;
  config.train.epochs = 2.0;
  const CheckReport report = make_check_report(config, 2);
  ASSERT_EQ(report.data.size(), 2U);
  const DataStatistics& train = report.data[0].statistics;
  std::int64_t truncated = 0, targets = 0, largest = 0;
  for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
    const auto& tokens = fixture.documents.tokens[d];
    truncated += tokens.size() > 6 ? 1 : 0;
    largest = std::max(largest, *std::max_element(tokens.begin(), tokens.end()));
    for (std::size_t i = 1; i < std::min<std::size_t>(6, tokens.size()); ++i) {
      targets += fixture.documents.options.masks[d][i];
    }
  }
  EXPECT_EQ(train.samples, 20);
  EXPECT_EQ(train.truncated, truncated);
  EXPECT_EQ(train.targets, targets);
  EXPECT_EQ(report.data[0].largest_id, largest);
  EXPECT_EQ(report.steps, 5);
  EXPECT_EQ(report.data_size, 2);
  EXPECT_DOUBLE_EQ(report.epochs, 2.0);
  EXPECT_GT(report.step.micro_batches, 0.0);  // fewer than 2 where samples have lost all targets
  EXPECT_LE(report.step.micro_batches, 2.0);
  EXPECT_LE(report.step.max_tokens, 2 * 5);
  EXPECT_FALSE(report.store_exists);
  EXPECT_EQ(report.memory.store, 0);
  EXPECT_TRUE(report.warnings.empty());
}

TEST(CheckReport, PlansTheStoreThatIsToBeCollected) {
  RunFixture fixture({.count = 20});
  RunConfig config = fixture.config;
  config.replay.store = fixture.folder / "store";
  config.replay.normalization = "tile";
  const CheckReport all = make_check_report(config, 1);
  EXPECT_EQ(all.store.positions, all.data[0].statistics.targets);
  EXPECT_GT(all.store_bytes, all.store.positions * 100);
  EXPECT_GT(all.store_largest_bytes, all.store_bytes);
  config.replay.positions = "last";
  config.replay.budget = 1;
  EXPECT_EQ(make_check_report(config, 1).store.positions, 20 - all.data[0].statistics.without_targets);
}

TEST(CheckReport, RefusesLayoutsThatDoNotFitAndNamesThoseThatDo) {
  RunFixture fixture;
  RunConfig config = fixture.config;  // 4 heads, 2 kv heads, ffn 48, global batch 8
  config.parallel.tensor = 3;
  expect_refused(
      ErrorKind::kUsage,
      {"6 ranks do not fit", "parallel.tensor = 3 does not divide num_attention_heads = 4", "num_key_value_heads = 2"},
      config, 6);
  config.parallel.tensor = 2;
  expect_refused(ErrorKind::kUsage, {"parallel.tensor = 2 does not divide the number of ranks = 3"}, config, 3);
  config.parallel.tensor = 1;
  expect_refused(ErrorKind::kUsage, {"does not divide train.global_batch = 8", "parallel.tensor that fit: 4"}, config,
                 12 * 4 / 3 * 2);
}

TEST(CheckReport, RefusesWhatTheRunWouldRefuse) {
  RunFixture fixture;
  RunConfig config = fixture.config;
  config.data.sequence_length = 1000;
  expect_refused(ErrorKind::kUsage, {"data.sequence_length = 1000", "256"}, config);
  config = fixture.config;
  config.data.train = {fixture.folder / "absent"};
  expect_refused(ErrorKind::kData, {"absent.idx"}, config);
  config = fixture.config;
  config.model.path = fixture.folder / "absent";
  expect_refused(ErrorKind::kUsage, {"absent/config.json"}, config);
  config = fixture.config;
  config.run.folder = fixture.folder / "data.idx" / "run";
  expect_refused(ErrorKind::kDisk, {"run.folder", "cannot write"}, config);

  auto json = model_config_json(fixture.model);
  json["vocab_size"] = 97;
  write_file_atomically(fixture.folder / "model" / "config.json", json.dump());
  expect_refused(ErrorKind::kUsage, {"do not fit config.json", "[96, 32]", "[97, 32]"}, fixture.config);
  make_model_folder(fixture.folder / "model", fixture.model);

  auto documents = fixture.documents;
  documents.tokens[3][1] = 96;
  make_dataset(fixture.folder / "large_id", documents.tokens, documents.options);
  config = fixture.config;
  config.data.train = {fixture.folder / "large_id"};
  expect_refused(ErrorKind::kData, {"large_id", "96"}, config);

  write_file_atomically(fixture.folder / "model" / "tokenizer.json", R"({"model": {"vocab": {"a": 0, "b": 96}}})");
  expect_refused(ErrorKind::kUsage, {"tokenizer has id 96", "vocab_size = 96"}, fixture.config);
}

TEST(CheckReport, WarnsOfDataFromAnotherTokenizer) {
  RunFixture fixture;
  write_file_atomically(fixture.folder / "data.json", R"({"tokenizer_sha256": "00"})");
  EXPECT_TRUE(mentions(make_check_report(fixture.config, 1).warnings, "another tokenizer"));
  write_file_atomically(fixture.folder / "model" / "tokenizer.json", R"({"model": {"vocab": {"a": 95}}})");
  const std::string hash = sha256_file(fixture.folder / "model" / "tokenizer.json", ErrorKind::kData);
  write_file_atomically(fixture.folder / "data.json", "{\"tokenizer_sha256\": \"" + hash + "\"}");
  EXPECT_TRUE(make_check_report(fixture.config, 1).warnings.empty());
}

TEST(CheckReport, NotesWhatHasNoEffectOrIsOdd) {
  RunFixture fixture;
  RunConfig config = fixture.config;
  config.optimizer.max_angle = 60.0;  // adamw
  config.schedule.warmup_steps = 10;  // of 4
  config.train.micro_batch = 32;      // of 8
  const CheckReport report = make_check_report(config, 1);
  EXPECT_TRUE(mentions(report.notes, "optimizer.max_angle"));
  EXPECT_TRUE(mentions(report.notes, "train.micro_batch = 32"));
  EXPECT_TRUE(mentions(report.warnings, "schedule.warmup_steps"));
}

TEST(StoreProvenance, NamesEachKeyThatDiffers) {
  RunFixture fixture;
  RunConfig config = fixture.config;
  config.data.sequence_length = 64;
  config.replay.log_probs = true;
  const StoreProvenance store = store_provenance(config);
  EXPECT_EQ(store.at("vocab_size"), "96");
  EXPECT_EQ(store.at("tau"), "0.95");

  require_usable_store(store, store, "here");
  config.data.sequence_length = 32;  // a store of longer samples serves shorter ones
  config.replay.log_probs = false;
  config.model.dtype = "bfloat16";
  require_usable_store(store, store_provenance(config), "here");
  config.data.sequence_length = 128;
  expect_error(ErrorKind::kStoreMismatch, {"here", "data.sequence_length: the store has 64, this run 128"},
               [&] { require_usable_store(store, store_provenance(config), "here"); });

  config.data.sequence_length = 64;
  config.replay.tau = 0.5;
  config.replay.k_max = 7;
  config.data.seed = 9;
  make_model_folder(fixture.folder / "model", fixture.model, {.seed = 5});
  expect_error(ErrorKind::kStoreMismatch,
               {"model (weights", "replay.tau: the store has 0.95, this run 0.5", "replay.k_max", "data.seed"},
               [&] { require_usable_store(store, store_provenance(config), "here"); });
}

}  // namespace
}  // namespace reprise
