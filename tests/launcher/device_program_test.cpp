#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "loss/replay_store.hpp"
#include "tests/support/program_fixture.hpp"

// The program with CUDA, on the emulated device, beside the program on a CPU: the same commands on the same files give
// the same results to rounding. Two ranks under mpirun share the device, so device memory travels staged over MPI.

namespace reprise {
namespace {

constexpr int kRanks = 2;

/// A model, data and run file that two programs share; each has a store and a run of its own.
struct TwoDevices : ProgramFixture {
  TwoDevices() : ProgramFixture({.count = 20, .shortest = 6, .longest = 14}) {
    config.replay.normalization = "tile";
    config.replay.tau = 0.5;
    config.replay.k_max = 60;
    config.replay.negatives = 8;
    config.optimizer.name = "moclip";
    config.data.eval = {folder / "held_out"};
    config.train.steps = 4;
    config.train.eval_every = 2;
    config.train.probe_every = 2;
    config.train.checkpoint_every = 2;
    config.parallel.tensor = kRanks;
  }

  void use(const std::string& device) {
    program = device == "cuda" ? REPRISE_DEVICE_PROGRAM : REPRISE_PROGRAM;
    config.parallel.device = device;
    config.replay.store = folder / ("store-" + device);
    config.run.folder = folder / ("run-" + device);
  }
  void expect_done(const ProgramResult& result) const { ASSERT_EQ(result.exit_code, 0) << result.printed; }

  void collect_and_train() {
    for (const char* device : {"cpu", "cuda"}) {
      use(device);
      expect_done(collect(kRanks));
      expect_done(train(kRanks));
    }
  }
};

/// The first line of JSON; what a command says on the way may be printed before or behind it.
std::string json_line(const std::string& printed) {
  const std::size_t begin = std::min(printed.find('{'), printed.size());
  return printed.substr(begin, printed.find('\n', begin) - begin);
}

double number(const nlohmann::json& line, const char* key) {
  return line.at(key).get<double>();
}

/// Every sample has the same records; where an id differs, it is at the boundary of a set.
void expect_same_sets(const std::filesystem::path& a, const std::filesystem::path& b, std::size_t documents) {
  const ReplayStoreReader first(a), second(b);
  std::int64_t tokens = 0, other_tokens = 0;
  for (std::uint64_t id = 0; id < documents; ++id) {
    ASSERT_EQ(first.contains(id), second.contains(id));
    if (!first.contains(id)) continue;
    const SampleRecords x = first.read(id), y = second.read(id);
    ASSERT_EQ(x.position, y.position);
    ASSERT_EQ(x.gold, y.gold);
    for (std::int64_t t = 0; t < x.size(); ++t, ++tokens) {
      const auto index = static_cast<std::size_t>(t);
      EXPECT_NEAR(x.confidence[index], y.confidence[index], 1e-5 * x.confidence[index]);
      const auto ids_of = [&](const SampleRecords& records) {
        return std::vector<std::uint32_t>(records.ids.begin() + records.id_begin[index],
                                          records.ids.begin() + records.id_begin[index + 1]);
      };
      const std::vector<std::uint32_t> p = ids_of(x), q = ids_of(y);
      if (p == q) {
        EXPECT_NEAR(x.mass[index], y.mass[index], 1e-5);
        continue;
      }
      ++other_tokens;
      std::vector<std::uint32_t> difference;
      std::set_symmetric_difference(p.begin(), p.end(), q.begin(), q.end(), std::back_inserter(difference));
      EXPECT_LE(difference.size(), 2u) << "sample " << id << " record " << t;
    }
  }
  EXPECT_GT(tokens, 40);
  EXPECT_LE(other_tokens, tokens / 50);
}

void expect_same_metrics(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto first = comparable_metrics(a), second = comparable_metrics(b);
  ASSERT_EQ(first.size(), second.size());
  for (std::size_t i = 0; i < first.size(); ++i) {
    for (const char* key : {"step", "tokens", "skipped", "eval", "schema"}) {
      EXPECT_EQ(first[i].contains(key), second[i].contains(key)) << key;
      EXPECT_EQ(first[i].value(key, nlohmann::json()), second[i].value(key, nlohmann::json()))
          << key << " of line " << i;
    }
    for (const char* key : {"loss", "grad_norm", "lr", "out_of_set_mass", "angle_mean", "clipped_share"}) {
      ASSERT_EQ(first[i].contains(key), second[i].contains(key)) << key;
      if (!first[i].contains(key) || !first[i][key].is_number()) continue;
      const double value = number(first[i], key), bound = std::string(key) == "loss" ? 1e-4 : 1e-3;
      EXPECT_NEAR(number(second[i], key), value, bound * std::abs(value) + 1e-7) << key << " of line " << i;
    }
  }
}

TEST(DeviceProgram, CollectsTrainsAndEvaluatesAsTheCpuDoes) {
  TwoDevices both;
  both.collect_and_train();
  expect_same_sets(both.folder / "store-cpu", both.folder / "store-cuda", both.documents.tokens.size());
  expect_same_metrics(both.folder / "run-cpu", both.folder / "run-cuda");

  const auto provenance = [&](const char* run) {
    return nlohmann::json::parse(read_text_file(both.folder / run / "provenance.json", ErrorKind::kData))["device"];
  };
  EXPECT_EQ(provenance("run-cpu")["kind"], "cpu");
  EXPECT_EQ(provenance("run-cuda")["kind"], "cuda");
  EXPECT_EQ(provenance("run-cuda")["transport"], "staged");
  EXPECT_NE(provenance("run-cuda")["name"].get<std::string>(), "");
}

TEST(DeviceProgram, GoesOnFromItsCheckpointsBitForBitAndFromThoseOfACpu) {
  TwoDevices both;
  both.config.replay.store = "";
  both.config.replay.normalization = "full";
  both.config.replay.negatives = 0;
  both.config.train.eval_every = 0;
  const auto start = [&](const char* device, const char* run) {
    both.program = std::string(device) == "cuda" ? REPRISE_DEVICE_PROGRAM : REPRISE_PROGRAM;
    both.config.parallel.device = device;
    both.config.run.folder = both.folder / run;
  };
  start("cuda", "whole");
  both.expect_done(both.train(kRanks));
  start("cuda", "parts");
  EXPECT_EQ(both.train(kRanks, "", {"--stop-after", "2"}).exit_code, 75);
  both.expect_done(both.train(kRanks));
  EXPECT_EQ(comparable_metrics(both.folder / "parts"), comparable_metrics(both.folder / "whole"));
  EXPECT_EQ(checkpoint_tensors(both.folder / "parts", 4), checkpoint_tensors(both.folder / "whole", 4));

  start("cpu", "mixed");
  EXPECT_EQ(both.train(kRanks, "", {"--stop-after", "2"}).exit_code, 75);
  start("cuda", "mixed");
  both.config.parallel.tensor = 1;
  both.expect_done(both.train(1));
  expect_same_metrics(both.folder / "mixed", both.folder / "whole");
}

TEST(DeviceProgram, EvaluatesGeneratesAndExportsAsTheCpuDoes) {
  TwoDevices both;
  const std::filesystem::path model = both.folder / "model";
  const auto run_on = [&](const char* device, std::vector<std::string> words, int ranks) {
    both.use(device);
    words.insert(words.end(), {"--device", device, "--threads", "1"});
    const ProgramResult result = both.run(words, ranks);
    EXPECT_EQ(result.exit_code, 0) << result.printed;
    return result.printed;
  };
  const auto evaluate = [&](const char* device) {
    const std::string text = run_on(
        device, {"eval", "--model", model, "--data", both.folder / "held_out", "--tensor", "2", "--json"}, kRanks);
    return nlohmann::json::parse(json_line(text));
  };
  const auto cpu = evaluate("cpu"), device = evaluate("cuda");
  EXPECT_EQ(cpu["tokens"], device["tokens"]);
  EXPECT_NEAR(number(device, "loss"), number(cpu, "loss"), 1e-5);

  for (const std::string temperature : {"0", "1"}) {
    const std::vector<std::string> words = {"generate",     "--model", model,           "--prompt", "5,9,30",
                                            "--max-tokens", "8",       "--temperature", temperature};
    const auto generated = [&](const char* where) { return json_line(run_on(where, words, 1)); };
    EXPECT_EQ(generated("cuda"), generated("cpu"));
  }

  both.use("cuda");
  both.config.replay.store = "";
  both.config.replay.normalization = "full";
  both.config.replay.negatives = 0;
  both.config.train.steps = 1;
  both.config.train.eval_every = both.config.train.checkpoint_every = 0;
  both.expect_done(both.train(kRanks));
  const auto exported = [&](const char* where) {
    const std::filesystem::path out = both.folder / (std::string("exported-") + where);
    (void)run_on(where, {"export", "--run", both.folder / "run-cuda", "--out", out, "--tensor", "2"}, kRanks);
    return read_text_file(out / "model.safetensors", ErrorKind::kData);
  };
  EXPECT_TRUE(exported("cuda") == exported("cpu"));
}

TEST(DeviceProgram, DoctorShowsTheDeviceAndWhatAutoTakes) {
  TwoDevices both;
  both.use("cuda");
  const ProgramResult alone = both.run({"doctor"});
  EXPECT_NE(alone.printed.find("emulated device 0"), std::string::npos) << alone.printed;
  EXPECT_NE(alone.printed.find("compute capability 9.0"), std::string::npos) << alone.printed;
  const ProgramResult pair = both.run({"doctor"}, kRanks);
  EXPECT_NE(pair.printed.find("transport staged"), std::string::npos) << pair.printed;
  both.config.parallel.transport = "nccl";
  const ProgramResult refused = both.train(kRanks);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.printed.find("ranks 0 and 1 share a GPU"), std::string::npos) << refused.printed;
}

}  // namespace
}  // namespace reprise
