#include "launcher/evaluator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>

#include "core/transfer.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/model_session.hpp"
#include "launcher/npy_writer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/layers/decoder_oracle.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

struct Evaluated {
  EvalResult result;
  std::vector<float> log_probs;
  std::vector<SampleScore> samples;
};

template <class T>
Evaluated evaluate_with(const RunFixture& fixture, int tensor, int data, std::int64_t micro_batch,
                        const std::filesystem::path& store = {}) {
  Evaluated evaluated;
  std::mutex mutex;
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, tensor > 1, 1);
    const auto model = load_model<T>(session, fixture.config.model.path, true);
    const IndexedDataset dataset(fixture.config.data.train.front(), model->config.vocab_size);
    EvaluationOptions options;
    options.sequence_length = fixture.config.data.sequence_length;
    options.micro_batch = micro_batch;
    std::optional<ReplayStoreReader> reader;
    if (!store.empty()) options.store = &reader.emplace(store);
    Evaluated own;
    options.on_log_probs = [&](std::span<const float> piece) {
      own.log_probs.insert(own.log_probs.end(), piece.begin(), piece.end());
    };
    options.on_sample = [&](const SampleScore& sample) { own.samples.push_back(sample); };
    own.result = evaluate(session, *model->model, dataset, options);
    const std::lock_guard lock(mutex);
    if (world.rank() == 0) evaluated = own;
  });
  return evaluated;
}

/// A target: where it stands, and the probabilities of all tokens there, in float64.
struct OracleTarget {
  std::size_t document, position;
  std::int32_t gold;
  std::vector<double> probabilities;

  [[nodiscard]] double log_prob() const { return std::log(probabilities[static_cast<std::size_t>(gold)]); }
  [[nodiscard]] bool is_top() const {
    return *std::max_element(probabilities.begin(), probabilities.end()) ==
           probabilities[static_cast<std::size_t>(gold)];
  }
};

/// Every target, document after document.
std::vector<OracleTarget> oracle_targets(const RunFixture& fixture) {
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto model = load_model<float>(session, fixture.config.model.path, true);
  Tables weights;
  for (std::int64_t p = 0; p < model->parameters.count(); ++p) {
    const auto value = model->parameters.value(p);
    Table table(value.rows, value.cols);
    const std::vector<float> on_host = to_host(session.stream(), value.flat());
    std::copy(on_host.begin(), on_host.end(), table.data.begin());
    weights[model->parameters.spec(p).name] = table;
  }
  const Table& head = weights.at("lm_head.weight");
  std::vector<OracleTarget> targets;
  for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
    const auto& all = fixture.documents.tokens[d];
    const std::vector<std::int32_t> tokens(all.begin(), all.end() - 1);
    const Table hidden =
        DecoderOracle(fixture.model, weights).forward(tokens, {0, static_cast<std::int64_t>(tokens.size())});
    for (std::int64_t t = 0; t < hidden.rows; ++t) {
      const auto next = static_cast<std::size_t>(t + 1);
      if (fixture.documents.options.masks[d][next] == 0) continue;
      OracleTarget target{d, static_cast<std::size_t>(t), static_cast<std::int32_t>(all[next]), {}};
      double sum = 0.0;
      for (std::int64_t v = 0; v < head.rows; ++v) {
        double logit = 0.0;
        for (std::int64_t c = 0; c < head.cols; ++c) logit += hidden(t, c) * head(v, c);
        target.probabilities.push_back(std::exp(logit));
        sum += target.probabilities.back();
      }
      for (double& probability : target.probabilities) probability /= sum;
      targets.push_back(target);
    }
  }
  return targets;
}

/// Makes the last token of every seventh document what the model would say, so that some targets are its first choice.
void make_some_targets_right(RunFixture& fixture) {
  for (const OracleTarget& target : oracle_targets(fixture)) {
    auto& tokens = fixture.documents.tokens[target.document];
    if (target.document % 7 != 0 || target.position + 2 != tokens.size()) continue;
    tokens.back() =
        std::max_element(target.probabilities.begin(), target.probabilities.end()) - target.probabilities.begin();
  }
  make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
}

constexpr std::array<std::pair<int, int>, 6> kLayouts = {{{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}, {4, 2}}};

RandomDocumentsOptions three_units() {
  RandomDocumentsOptions options;
  options.count = 2 * kSamplesPerUnit + 7;  // the last rounds of two and of four ranks are not full
  options.longest = 6;
  return options;
}

TEST(Evaluator, GivesTheOraclesLossAccuracyAndLogProbabilitiesInDataOrderUnderEveryLayout) {
  RunFixture fixture(three_units());
  make_some_targets_right(fixture);
  const auto expected = oracle_targets(fixture);
  double sum = 0.0, top = 0.0;
  std::map<std::size_t, SampleScore> samples;
  for (const OracleTarget& target : expected) {
    sum += target.log_prob();
    top += target.is_top() ? 1.0 : 0.0;
    SampleScore& sample = samples[target.document];
    ++sample.tokens;
    sample.log_prob += target.log_prob();
    sample.top += target.is_top() ? 1 : 0;
  }
  const auto tokens = static_cast<double>(expected.size());
  ASSERT_GT(top, 3.0);
  ASSERT_LT(top, tokens - 3.0);
  for (const auto& [tensor, data] : kLayouts) {
    const Evaluated evaluated = evaluate_with<float>(fixture, tensor, data, 16);
    ASSERT_EQ(evaluated.log_probs.size(), expected.size());
    EXPECT_EQ(evaluated.result.tokens, static_cast<std::int64_t>(expected.size()));
    EXPECT_EQ(evaluated.result.samples, std::ssize(fixture.documents.tokens));
    EXPECT_NEAR(evaluated.result.loss, -sum / tokens, 1e-6);
    EXPECT_EQ(evaluated.result.top1, top / tokens);
    EXPECT_FALSE(evaluated.result.outside.has_value());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(evaluated.log_probs[i], expected[i].log_prob(), 2e-5) << i;
    }
    ASSERT_EQ(evaluated.samples.size(), samples.size());
    for (const SampleScore& sample : evaluated.samples) {
      const SampleScore& wanted = samples.at(static_cast<std::size_t>(sample.document));
      EXPECT_EQ(sample.tokens, wanted.tokens);
      EXPECT_EQ(sample.top, wanted.top);
      EXPECT_NEAR(sample.log_prob, wanted.log_prob, 1e-4);
    }
    EXPECT_TRUE(std::is_sorted(evaluated.samples.begin(), evaluated.samples.end(),
                               [](const SampleScore& a, const SampleScore& b) { return a.document < b.document; }));
  }
}

/// A part of the layouts for what costs more.
constexpr std::array<std::pair<int, int>, 3> kSomeLayouts = {{{1, 1}, {4, 1}, {2, 2}}};

/// A store of random sets for the targets of two in three documents, but for every fifth position.
struct RandomStore {
  std::filesystem::path folder;
  std::vector<double> outside;  ///< of the recorded targets, by the oracle
  std::int64_t gold_forced = 0;

  RandomStore(const RunFixture& fixture, const std::vector<OracleTarget>& targets) : folder(fixture.folder / "sets") {
    const IndexedDataset dataset(fixture.config.data.train.front());
    const StoreProvenance provenance{{"vocab_size", std::to_string(fixture.model.vocab_size)}};
    ReplayStoreWriter writer(folder, 0, provenance);
    for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
      if (d % 3 == 2) continue;
      SampleRecords records;
      records.sample_id = dataset.sample_id(static_cast<std::int64_t>(d));
      records.sample_hash = dataset.read(static_cast<std::int64_t>(d)).hash;
      for (const OracleTarget& target : targets) {
        if (target.document == d && (target.position + d) % 5 != 4) add(target, records);
      }
      writer.append(records);
    }
    writer.commit(1);
    finish_store(folder, provenance, 1, "{}");
  }

 private:
  void add(const OracleTarget& target, SampleRecords& records) {
    const std::size_t step = 1 + (target.document + target.position) % 4;
    double inside = 0.0;
    for (std::size_t id = 0; id < target.probabilities.size(); ++id) {
      if (id % step != 0 && id != static_cast<std::size_t>(target.gold)) continue;
      records.ids.push_back(static_cast<std::uint32_t>(id));
      inside += target.probabilities[id];
    }
    const bool forced = target.gold % 3 == 0;
    gold_forced += forced ? 1 : 0;
    outside.push_back(1.0 - inside);
    records.position.push_back(static_cast<std::uint32_t>(target.position));
    records.gold.push_back(static_cast<std::uint32_t>(target.gold));
    records.flags.push_back(forced ? SampleRecords::kGoldForced : std::uint8_t{0});
    records.mass.push_back(0.5f);
    records.confidence.push_back(0.5f);
    records.id_begin.push_back(std::ssize(records.ids));
  }
};

TEST(Evaluator, MeasuresTheProbabilityOutsideTheSetsOfAStoreUnderEveryLayout) {
  const RunFixture fixture(three_units());
  const auto targets = oracle_targets(fixture);
  double loss = 0.0;
  for (const OracleTarget& target : targets) loss -= target.log_prob() / static_cast<double>(targets.size());
  RandomStore store(fixture, targets);
  std::vector<double>& outside = store.outside;
  const auto count = static_cast<double>(outside.size());
  const double mean = std::accumulate(outside.begin(), outside.end(), 0.0) / count;
  std::sort(outside.begin(), outside.end());
  ASSERT_LT(outside.front(), 1e-9);  // whole vocabularies among them
  for (const auto& [tensor, data] : kSomeLayouts) {
    const Evaluated evaluated = evaluate_with<float>(fixture, tensor, data, 16, store.folder);
    ASSERT_TRUE(evaluated.result.outside.has_value());
    const OutsideMass& mass = *evaluated.result.outside;
    EXPECT_EQ(mass.tokens, std::ssize(outside));
    EXPECT_NEAR(mass.mean, mean, 1e-6);
    EXPECT_EQ(mass.gold_outside_rate, static_cast<double>(store.gold_forced) / count);
    for (std::size_t q = 0; q < OutsideMass::kQuantiles.size(); ++q) {
      const auto rank = static_cast<std::size_t>(std::ceil(OutsideMass::kQuantiles[q] * count)) - 1;
      EXPECT_NEAR(mass.quantiles[q], outside[rank], 0.0125 * outside[rank]) << q;
    }
    EXPECT_NEAR(evaluated.result.loss, loss, 1e-6);
  }
}

TEST(Evaluator, RefusesAStoreOfOtherTokens) {
  RunFixture fixture;
  const RandomStore store(fixture, oracle_targets(fixture));
  fixture.documents.tokens[0][0] ^= 1;
  make_dataset(fixture.folder / "data", fixture.documents.tokens, fixture.documents.options);
  expect_error(ErrorKind::kStoreMismatch, {"document 0", "collect again"},
               [&] { (void)evaluate_with<float>(fixture, 1, 1, 8, store.folder); });
}

TEST(Evaluator, MicroBatchesAndStorageChangeTheLossByRoundingOnly) {
  const RunFixture fixture;
  const double loss = evaluate_with<float>(fixture, 1, 1, 8).result.loss;
  EXPECT_NEAR(evaluate_with<float>(fixture, 1, 1, 1).result.loss, loss, 1e-6);
  EXPECT_NEAR(evaluate_with<BFloat16>(fixture, 1, 1, 8).result.loss, loss, 2e-2);
}

TEST(NpyWriter, WritesAHeaderThatNumpyDocuments) {
  const TemporaryFolder folder;
  const std::vector<float> values = {1.5f, -2.25f, 1e-30f};
  {
    NpyWriter writer(folder / "values.npy", 3);
    writer.append(std::span(values).first(1));
    EXPECT_FALSE(std::filesystem::exists(folder / "values.npy"));
    writer.append(std::span(values).subspan(1));
    writer.finish();
  }
  const std::string bytes = read_text_file(folder / "values.npy", ErrorKind::kDisk);
  ASSERT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  const auto length =
      static_cast<std::size_t>(static_cast<unsigned char>(bytes[8]) + 256 * static_cast<unsigned char>(bytes[9]));
  EXPECT_EQ((10 + length) % 64, 0u);
  EXPECT_EQ(bytes.substr(10, 58), "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } ");
  EXPECT_EQ(bytes[9 + length], '\n');
  ASSERT_EQ(bytes.size(), 10 + length + 12);
  EXPECT_EQ(std::memcmp(bytes.data() + 10 + length, values.data(), 12), 0);
}

TEST(NpyWriter, RefusesToFinishAFileThatIsNotWhole) {
  const TemporaryFolder folder;
  {
    NpyWriter writer(folder / "values.npy", 3);
    expect_error(ErrorKind::kInternal, {"0 of 3"}, [&] { writer.finish(); });
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace reprise
