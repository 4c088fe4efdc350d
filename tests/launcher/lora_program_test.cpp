#include <gtest/gtest.h>

#include <cstring>

#include "launcher/checkpoint.hpp"
#include "launcher/safetensors.hpp"
#include "tests/support/program_fixture.hpp"

// The program with [lora]: runs, checkpoints, adapter folders out and in, collection through an adapter.

namespace reprise {
namespace {

struct LoraProgram : ProgramFixture {
  LoraProgram() : ProgramFixture(RandomDocumentsOptions{.count = 20}) {
    config.lora.rank = 4;
    config.lora.alpha = 8.0;
    config.optimizer.name = "moclip";
    config.train.checkpoint_every = 2;
    config.train.keep = 10;
  }
  ProgramResult expect_done(const ProgramResult& result) const {
    EXPECT_EQ(result.exit_code, 0) << result.printed;
    return result;
  }
  /// Trains `steps` into `folder / name`.
  void train_into(const std::string& name, std::int64_t steps, int tensor = 1, int ranks = 1) {
    config.run.folder = folder / name;
    config.train.steps = steps;
    config.parallel.tensor = tensor;
    config.parallel.transport = ranks > 1 ? "thread" : "auto";
    (void)expect_done(train(1, "", {"--ranks", std::to_string(ranks)}));
    config.parallel.transport = "auto";
  }
  [[nodiscard]] std::string at(const std::string& name) const { return folder / name; }
  /// Log-probabilities of the held-out data's targets.
  [[nodiscard]] std::vector<float> log_probs(const std::vector<std::string>& of, int ranks = 1) const {
    std::vector<std::string> words = {
        "eval", "--data",   at("held_out"),        "--per-token", at("log_probs.npy"),  "--threads",
        "1",    "--tensor", std::to_string(ranks), "--ranks",     std::to_string(ranks)};
    words.insert(words.end(), of.begin(), of.end());
    (void)expect_done(run(words));
    const std::string bytes = read_text_file(at("log_probs.npy"), ErrorKind::kData);
    const std::size_t header = 10 + static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
    std::vector<float> values((bytes.size() - header) / sizeof(float));
    std::memcpy(values.data(), bytes.data() + header, values.size() * sizeof(float));
    return values;
  }
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  return largest;
}

TEST(LoraProgram, CheckpointsHoldAdaptersAloneAndResumeBitForBit) {
  LoraProgram program;
  program.train_into("whole", 6);
  std::int64_t bytes = 0;
  for (const auto& [name, text] : checkpoint_tensors(program.at("whole"), 6)) {
    EXPECT_EQ(text.find("embed_tokens"), std::string::npos);
    EXPECT_NE(text.find("lora_A.weight"), std::string::npos);
    bytes += static_cast<std::int64_t>(text.size());
  }
  // q and o: 64, k and v: 48, gate, up and down: 80 rows and columns in all, of rank 4, in two layers.
  constexpr std::int64_t kElements = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80);
  EXPECT_GT(bytes, 3 * 4 * kElements);
  EXPECT_LT(bytes, 3 * 4 * kElements + (1 << 15));

  program.config.run.folder = program.folder / "stopped";
  EXPECT_EQ(program.train(1, "", {"--stop-after", "3"}).exit_code, 75);
  (void)program.expect_done(program.train());
  EXPECT_EQ(comparable_metrics(program.at("stopped")), comparable_metrics(program.at("whole")));
  EXPECT_EQ(checkpoint_tensors(program.at("stopped"), 6), checkpoint_tensors(program.at("whole"), 6));

  const ProgramResult other = program.train(1, "", {"lora.alpha=4.0", "train.steps=8"});
  EXPECT_EQ(other.exit_code, static_cast<int>(ErrorKind::kUsage));
  EXPECT_NE(other.printed.find("lora.alpha: 8.0 -> 4.0"), std::string::npos) << other.printed;
}

TEST(LoraProgram, AnyLayoutGoesOnFromAnyOther) {
  LoraProgram program;
  program.train_into("two", 2, 2, 2);
  for (const auto& [tensor, ranks] : {std::pair(1, 1), std::pair(4, 4), std::pair(1, 2)}) {
    SCOPED_TRACE(fmt::format("tensor {} of {} ranks", tensor, ranks));
    const std::string name = fmt::format("onto-{}-{}", tensor, ranks);
    std::filesystem::copy(program.folder / "two", program.folder / name, std::filesystem::copy_options::recursive);
    program.train_into(name, 2, tensor, ranks);  // nothing left to do: loads, and ends
    program.train_into(name, 3, tensor, ranks);
  }
  const auto last_loss = [&](const std::string& run) {
    return comparable_metrics(program.folder / run).back().at("loss").get<double>();
  };
  EXPECT_NEAR(last_loss("onto-4-4"), last_loss("onto-1-1"), 1e-5);
  EXPECT_NEAR(last_loss("onto-1-2"), last_loss("onto-1-1"), 1e-5);
}

TEST(LoraProgram, AdaptersBesideTheBaseAreTheMergedModel) {
  LoraProgram program;
  program.config.optimizer.lr = 0.05;
  program.train_into("run", 4, 2, 2);
  const std::string base = program.config.model.path;
  (void)program.expect_done(program.run({"export", "--run", program.at("run"), "--out", program.at("adapter")}));
  for (const std::string ranks : {"1", "2"}) {
    (void)program.expect_done(program.run({"export", "--run", program.at("run"), "--out", program.at("merged" + ranks),
                                           "--merge", "--tensor", ranks, "--ranks", ranks}));
  }
  EXPECT_FALSE(std::filesystem::exists(program.folder / "adapter/model.safetensors"));
  const std::vector<float> merged = program.log_probs({"--model", program.at("merged1")});
  EXPECT_LT(largest_difference(program.log_probs({"--model", program.at("merged2")}), merged), 1e-5);
  for (const int ranks : {1, 2, 4}) {
    const auto beside = program.log_probs({"--model", base, "--adapter", program.at("adapter")}, ranks);
    EXPECT_LT(largest_difference(beside, merged), 2e-5) << ranks;
  }
  EXPECT_GT(largest_difference(program.log_probs({"--model", base}), merged), 0.01);

  const auto generated = [&](const std::vector<std::string>& model) {
    std::vector<std::string> words = {"generate", "--data", program.at("held_out"),   "--max-tokens",
                                      "8",        "--out",  program.at("texts.jsonl")};
    words.insert(words.end(), model.begin(), model.end());
    (void)program.expect_done(program.run(words));
    return read_text_file(program.at("texts.jsonl"), ErrorKind::kData);
  };
  EXPECT_EQ(generated({"--model", base, "--adapter", program.at("adapter")}),
            generated({"--model", program.at("merged1")}));
}

TEST(LoraProgram, MergesIntoTheBaseThatItWasTrainedBesideAlone) {
  LoraProgram program;
  program.train_into("run", 1);
  make_model_folder(program.folder / "model", program.model, {.seed = 2});
  const ProgramResult merge =
      program.run({"export", "--run", program.at("run"), "--out", program.at("merged"), "--merge"});
  EXPECT_EQ(merge.exit_code, static_cast<int>(ErrorKind::kCheckpoint)) << merge.printed;
  EXPECT_NE(merge.printed.find("was trained beside other weights"), std::string::npos) << merge.printed;
  EXPECT_FALSE(std::filesystem::exists(program.folder / "merged"));
  (void)program.expect_done(program.run({"export", "--run", program.at("run"), "--out", program.at("adapter")}));
}

TEST(LoraProgram, CollectsThroughAnAdapterAndTrainsOnFromIt) {
  LoraProgram program;
  program.config.optimizer.lr = 0.05;
  program.train_into("first", 4);
  (void)program.expect_done(program.run({"export", "--run", program.at("first"), "--out", program.at("adapter")}));
  (void)program.expect_done(
      program.run({"export", "--run", program.at("first"), "--out", program.at("merged"), "--merge"}));

  program.config.lora = {};
  program.config.lora.adapter = program.folder / "adapter";
  program.config.replay.store = program.folder / "store";
  program.config.replay.normalization = "tile";
  program.config.replay.k_max = 20;
  program.config.run.folder = program.folder / "second";
  (void)program.expect_done(program.collect());
  program.config.train.steps = 2;
  (void)program.expect_done(program.train());
  const auto lines = comparable_metrics(program.folder / "second");
  program.config.lora = {};
  program.config.model.path = program.folder / "merged";
  program.config.replay.store = program.folder / "merged_store";
  program.config.run.folder = program.folder / "of_merged";
  (void)program.expect_done(program.collect());
  (void)program.expect_done(program.train());
  const auto step_1 = [](const std::vector<nlohmann::json>& all) {
    for (const auto& line : all) {
      if (line.contains("grad_norm")) return line;
    }
    return nlohmann::json();
  };
  EXPECT_NEAR(step_1(lines).at("loss").get<double>(),
              step_1(comparable_metrics(program.folder / "of_merged")).at("loss").get<double>(), 1e-5);

  // The base alone did not make that store, and without its adapter the run began elsewhere.
  program.config.model.path = program.folder / "model";
  program.config.lora.rank = 4;
  program.config.replay.store = program.folder / "store";
  program.config.run.folder = program.folder / "third";
  EXPECT_EQ(program.train().exit_code, static_cast<int>(ErrorKind::kStoreMismatch));
}

TEST(LoraProgram, RefusesWhatCannotBe) {
  LoraProgram program;
  const auto refused = [&](const std::vector<std::string>& more, const std::string& part) {
    const ProgramResult result = program.train(1, "", more);
    EXPECT_EQ(result.exit_code, static_cast<int>(ErrorKind::kUsage)) << result.printed;
    EXPECT_NE(result.printed.find(part), std::string::npos) << result.printed;
  };
  refused({"lora.targets=q_proj,embed_tokens"}, "lora.targets");
  refused({"lora.targets=[]"}, "lora.targets is empty");
  refused({"lora.rank=-1"}, "lora.rank = -1");
  refused({"lora.alpha=0"}, "lora.alpha = 0");
  refused({"lora.adapter=nowhere", "lora.rank=0"}, "nowhere: no adapter_config.json");
  program.config.lora.rank = 0;
  program.train_into("whole", 1);
  const ProgramResult merge =
      program.run({"export", "--run", program.at("whole"), "--out", program.at("out"), "--merge"});
  EXPECT_EQ(merge.exit_code, static_cast<int>(ErrorKind::kUsage));
  EXPECT_NE(merge.printed.find("--merge"), std::string::npos) << merge.printed;
}

}  // namespace
}  // namespace reprise
