#include "launcher/evaluator.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "core/transfer.hpp"
#include "launcher/data_loader.hpp"
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
};

template <class T>
Evaluated evaluate_with(const RunFixture& fixture, int tensor, int data, std::int64_t micro_batch) {
  Evaluated evaluated;
  std::mutex mutex;
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, tensor > 1, 1);
    const auto model = load_model<T>(session, fixture.config.model.path, true);
    const IndexedDataset dataset(fixture.config.data.train, model->config.vocab_size);
    EvaluationOptions options;
    options.sequence_length = fixture.config.data.sequence_length;
    options.micro_batch = micro_batch;
    std::vector<float> log_probs;
    options.on_log_probs = [&](std::span<const float> piece) {
      log_probs.insert(log_probs.end(), piece.begin(), piece.end());
    };
    const EvalResult result = evaluate(session, *model->model, dataset, options);
    const std::lock_guard lock(mutex);
    if (world.rank() == 0) evaluated = {result, log_probs};
  });
  return evaluated;
}

/// log p of every target, document after document, in float64.
std::vector<double> oracle_log_probs(const RunFixture& fixture) {
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
  std::vector<double> log_probs;
  for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
    const auto& all = fixture.documents.tokens[d];
    const std::vector<std::int32_t> tokens(all.begin(), all.end() - 1);
    const Table hidden =
        DecoderOracle(fixture.model, weights).forward(tokens, {0, static_cast<std::int64_t>(tokens.size())});
    for (std::int64_t t = 0; t < hidden.rows; ++t) {
      const auto next = static_cast<std::size_t>(t + 1);
      if (fixture.documents.options.masks[d][next] == 0) continue;
      double sum = 0.0, gold = 0.0;
      for (std::int64_t v = 0; v < head.rows; ++v) {
        double logit = 0.0;
        for (std::int64_t c = 0; c < head.cols; ++c) logit += hidden(t, c) * head(v, c);
        sum += std::exp(logit);
        if (v == all[next]) gold = logit;
      }
      log_probs.push_back(gold - std::log(sum));
    }
  }
  return log_probs;
}

TEST(Evaluator, GivesTheOraclesLogProbabilitiesInDataOrderUnderEveryLayout) {
  RandomDocumentsOptions options;
  options.count = 2 * kSamplesPerUnit + 7;  // three units: the last rounds of two and of four ranks are not full
  options.longest = 6;
  const RunFixture fixture(options);
  const std::vector<double> expected = oracle_log_probs(fixture);
  double sum = 0.0;
  for (const double value : expected) sum += value;
  for (const auto& [tensor, data] : {std::pair{1, 1}, {2, 1}, {1, 2}, {1, 4}}) {
    const Evaluated evaluated = evaluate_with<float>(fixture, tensor, data, 16);
    ASSERT_EQ(evaluated.log_probs.size(), expected.size());
    EXPECT_EQ(evaluated.result.tokens, static_cast<std::int64_t>(expected.size()));
    EXPECT_EQ(evaluated.result.samples, options.count);
    EXPECT_NEAR(evaluated.result.loss, -sum / static_cast<double>(expected.size()), 1e-6);
    for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(evaluated.log_probs[i], expected[i], 2e-5) << i;
  }
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
