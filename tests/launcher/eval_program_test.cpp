#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/program_fixture.hpp"

// eval and generate as programs: what they print and write is the same for every layout, and slips are named.

namespace reprise {
namespace {

using Json = nlohmann::json;

std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("{")) lines.push_back(Json::parse(line));
  }
  return lines;
}

struct EvalFixture : ProgramFixture {
  std::string model = folder / "model";

  [[nodiscard]] std::string done(std::vector<std::string> words, int ranks = 1) const {
    words.insert(words.end(), {"--threads", "1"});
    const ProgramResult result = run(words, ranks);
    EXPECT_EQ(result.exit_code, 0) << result.printed;
    return result.printed;
  }
  [[nodiscard]] std::string file(const std::string& name, const std::string& text) const {
    write_file_atomically(folder / name, text);
    return folder / name;
  }
  void expect_refused(const std::vector<std::string>& words, int exit_code, const std::string& part) const {
    const ProgramResult result = run(words);
    EXPECT_EQ(result.exit_code, exit_code) << result.printed;
    EXPECT_NE(result.printed.find(part), std::string::npos) << part << " is not in\n" << result.printed;
  }
};

void expect_near(const Json& got, const Json& wanted, double tolerance) {
  ASSERT_EQ(got.size(), wanted.size());
  for (const auto& [key, value] : wanted.items()) {
    if (value.is_number_float()) {
      EXPECT_NEAR(got.at(key).get<double>(), value.get<double>(), tolerance) << key;
    } else if (value.is_object()) {
      expect_near(got.at(key), value, tolerance);
    } else {
      EXPECT_EQ(got.at(key), value) << key;
    }
  }
}

TEST(EvalProgram, SeveralPrefixesGiveALineEachAndTheSameFilesOnEveryLayout) {
  EvalFixture p;
  const std::vector<std::string> words = {
      "eval", "--model", p.model, "--data", p.folder / "data", p.folder / "held_out", "--json"};
  const auto run = [&](int ranks, const std::string& tensor) {
    std::vector<std::string> all = words;
    all.insert(all.end(), {"--tensor", tensor, "--per-token", p.folder / "tokens.npy", "--per-sample",
                           p.folder / "samples.jsonl"});
    return json_lines(p.done(all, ranks));
  };
  const auto alone = run(1, "1");
  const auto samples = json_lines(read_text_file(p.folder / "samples.jsonl", ErrorKind::kData));
  ASSERT_EQ(alone.size(), 2u);
  EXPECT_EQ(alone[0].at("data").get<std::string>(), p.folder / "data");
  EXPECT_EQ(alone[1].at("data").get<std::string>(), p.folder / "held_out");
  std::int64_t tokens = 0;
  for (const Json& line : alone) {
    tokens += line.at("tokens").get<std::int64_t>();
    EXPECT_NEAR(line.at("perplexity").get<double>(), std::exp(line.at("loss").get<double>()), 1e-9);
  }
  EXPECT_EQ(samples.size(), alone[0].at("samples").get<std::size_t>() + alone[1].at("samples").get<std::size_t>());
  double nats = 0.0, all_nats = 0.0;
  for (const Json& sample : samples) nats += sample.at("loss").get<double>() * sample.at("tokens").get<double>();
  for (const Json& line : alone) all_nats += line.at("loss").get<double>() * line.at("tokens").get<double>();
  EXPECT_NEAR(nats, all_nats, 1e-8);
  const auto size = std::filesystem::file_size(p.folder / "tokens.npy");
  EXPECT_EQ(size % 64, static_cast<std::uintmax_t>(4 * tokens) % 64);

  const auto many = run(4, "2");
  ASSERT_EQ(many.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) expect_near(many[i], alone[i], 1e-4);
  const auto samples_of_many = json_lines(read_text_file(p.folder / "samples.jsonl", ErrorKind::kData));
  ASSERT_EQ(samples_of_many.size(), samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) expect_near(samples_of_many[i], samples[i], 1e-4);
  EXPECT_EQ(std::filesystem::file_size(p.folder / "tokens.npy"), size);
}

TEST(EvalProgram, TheCollectingModelLeavesOutsideWhatItsStoreDidNotCover) {
  EvalFixture p;
  p.config.replay.store = p.folder / "store";
  p.config.replay.normalization = "tile";
  p.config.replay.tau = 0.5;
  p.config.replay.k_max = 60;
  EXPECT_EQ(p.collect().exit_code, 0);
  const auto lines = json_lines(p.done({"eval", "--model", p.model, "--data", p.folder / "data", "--store",
                                        p.folder / "store", "--sequence-length", "32", "--tensor", "2", "--json"},
                                       2));
  ASSERT_EQ(lines.size(), 1u);
  const Json& outside = lines[0].at("outside");
  EXPECT_EQ(outside.at("tokens"), lines[0].at("tokens"));
  EXPECT_GT(outside.at("mean").get<double>(), 0.2);
  EXPECT_LE(outside.at("q99").get<double>(), 0.51);
  EXPECT_GT(outside.at("gold_outside_rate").get<double>(), 0.0);
  p.expect_refused({"eval", "--model", p.model, "--data", p.folder / "held_out", "--store", p.folder / "store"}, 4,
                   "collect again");
}

TEST(EvalProgram, TextsAreTheSameForEveryBatchAndLayoutAndDifferBySample) {
  EvalFixture p;
  std::string prompts;
  for (int i = 0; i < 7; ++i) {
    Json line;
    line["sample"] = 100 + i;
    for (int t = 0; t <= 2 * i; ++t) line["tokens"].push_back((5 + 11 * i + t) % 96);
    prompts += line.dump() + "\n";
  }
  const std::string file = p.file("prompts.jsonl", prompts);
  const auto generate = [&](int ranks, const std::vector<std::string>& more) {
    std::vector<std::string> words = {"generate", "--model",       p.model, "--prompts", file,   "--max-tokens",
                                      "6",        "--temperature", "0.9",   "--top-p",   "0.95", "--num-samples",
                                      "3",        "--log-probs"};
    words.insert(words.end(), more.begin(), more.end());
    // A file: on the standard output a long text may be cut by the progress that mpirun passes on beside it.
    words.insert(words.end(), {"--out", p.folder / "texts.jsonl"});
    (void)p.done(words, ranks);
    return json_lines(read_text_file(p.folder / "texts.jsonl", ErrorKind::kData));
  };
  const auto alone = generate(1, {"--ignore-eos"});
  ASSERT_EQ(alone.size(), 21u);
  std::size_t different = 0;
  for (std::size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].at("sample"), 100 + i / 3);
    EXPECT_EQ(alone[i].at("index"), i % 3);
    EXPECT_EQ(alone[i].at("tokens").size(), 6u);
    EXPECT_EQ(alone[i].at("log_probs").size(), 6u);
    EXPECT_EQ(alone[i].at("finish"), "length");
    different += i % 3 > 0 && alone[i].at("tokens") != alone[i - 1].at("tokens") ? 1 : 0;
  }
  EXPECT_GE(different, 13u);
  for (const auto& [ranks, more] :
       std::vector<std::pair<int, std::vector<std::string>>>{{1, {"--ignore-eos", "--batch", "2"}},
                                                             {4, {"--ignore-eos", "--tensor", "2", "--batch", "1"}},
                                                             {3, {"--ignore-eos"}}}) {
    const auto other = generate(ranks, more);
    ASSERT_EQ(other.size(), alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i) {
      EXPECT_EQ(other[i].at("tokens"), alone[i].at("tokens"));
      EXPECT_EQ(other[i].at("sample"), alone[i].at("sample"));
      EXPECT_NEAR(other[i].at("log_probs")[5].get<double>(), alone[i].at("log_probs")[5].get<double>(), 1e-4);
    }
  }
  const int stop = alone[0].at("tokens")[2];
  const auto stopped = generate(1, {"--ignore-eos", "--stop-ids", std::to_string(stop) + ",1"});
  EXPECT_EQ(stopped[0].at("finish"), "stop");
  EXPECT_EQ(stopped[0].at("stop_id"), stop);
  EXPECT_LE(stopped[0].at("tokens").size(), 2u);
  EXPECT_TRUE(stopped[0].contains("stop_log_prob"));
}

TEST(EvalProgram, SlipsAreNamedWithFileAndLine) {
  const EvalFixture p;
  const std::string data = p.folder / "data";
  p.expect_refused({"eval", "--model", p.model}, 2, "--data PREFIX or --choices FILE");
  p.expect_refused({"eval", "--model", p.model, "--data", data, "--choices", "x"}, 2, "--choices");
  p.expect_refused({"eval", "--model", p.model, "--choices", p.file("bad.jsonl", "{\"context\": [1]}\n")}, 3,
                   "bad.jsonl:1: no \"choices\"");
  p.expect_refused({"eval", "--model", p.model, "--choices", p.folder / "nothing.jsonl"}, 3, "nothing.jsonl");
  p.expect_refused({"eval", "--model", p.model, "--data", data, "--store", p.folder / "nowhere"}, 3, "nowhere");
  p.expect_refused({"generate", "--model", p.model, "--prompts", p.file("prompts.jsonl", "\n{\"tokens\": [1, 96]}\n")},
                   3, "prompts.jsonl:2: tokens holds 96");
  p.expect_refused({"generate", "--model", p.model, "--prompts", p.file("prompts.jsonl", "{\"text\": [1]}")}, 3,
                   "prompts.jsonl:1: unknown key \"text\"");
  const std::vector<std::string> one = {"generate", "--model", p.model, "--prompt", "5,6"};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = one;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  p.expect_refused(with({"--top-p", "0.9"}), 2, "--temperature 0 does not");
  p.expect_refused(with({"--temperature", "1", "--top-p", "1.5"}), 2, "--top-p 1.5: must lie in (0, 1]");
  p.expect_refused(with({"--temperature", "1", "--top-k", "-1"}), 2, "--top-k");
  p.expect_refused(with({"--stop-ids", "96"}), 2, "--stop-ids: id 96 is not in [0, 96)");
}

}  // namespace
}  // namespace reprise
