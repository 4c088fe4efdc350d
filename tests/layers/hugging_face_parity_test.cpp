#include <gtest/gtest.h>

#include <filesystem>

#include "launcher/hugging_face.hpp"
#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

/// Values that make_hugging_face_expectations.py stored beside a model.
struct Expected {
  Documents documents;
  Table hidden, logits;

  explicit Expected(const std::filesystem::path& folder) {
    const SafetensorsReader reader(folder / "expected.safetensors");
    const SafetensorsEntry& entry = reader.at("tokens");
    documents.tokens.resize(static_cast<std::size_t>(entry.rows() * entry.cols()));
    reader.read_bytes(entry, 0, entry.bytes(), documents.tokens.data());
    for (std::int64_t d = 0; d <= entry.rows(); ++d) documents.offsets.push_back(d * entry.cols());
    hidden = read(reader, "hidden");
    logits = read(reader, "logits");
  }

 private:
  static Table read(const SafetensorsReader& reader, const std::string& name) {
    const SafetensorsEntry& entry = reader.at(name);
    std::vector<float> values(static_cast<std::size_t>(entry.rows() * entry.cols()));
    reader.read<float>(entry, {values.data(), entry.rows(), entry.cols()});
    Table table(entry.shape[0] * entry.shape[1], entry.shape[2]);
    table.data.assign(values.begin(), values.end());
    return table;
  }
};

class HuggingFaceParityTest : public testing::TestWithParam<const char*> {};

template <class T>
void expect_parity(const std::filesystem::path& folder, int tp, bool sequence_parallel, double tolerance) {
  const Expected expected(folder);
  const DecoderConfig config = read_decoder_config(folder);
  Table hidden(expected.hidden.rows, expected.hidden.cols), logits(expected.logits.rows, expected.logits.cols);
  std::mutex mutex;
  run_device_ranks(tp, [&](Communicator& world) {
    RankModel<T> rank(world, config, tp, sequence_parallel, {});
    load_hugging_face(folder, config.tie_word_embeddings, rank.parameters);
    typename DecoderModel<T>::ActivationsPtr activations;
    const Table rows = table_of(
        rank.stream, rank.model.forward(rank.context, expected.documents.batch(), Recompute::kNone, activations));
    const Range tokens =
        rank.context.sequence_parallel ? even_shard(hidden.rows, tp, world.rank()) : Range{0, hidden.rows};
    const Table head = table_of(rank.stream, rank.model.head_weight());
    const std::lock_guard lock(mutex);
    std::copy(rows.data.begin(), rows.data.end(), hidden.data.begin() + tokens.begin * hidden.cols);
    if (rank.context.sequence_parallel) return;
    for (std::int64_t t = 0; t < rows.rows; ++t) {
      for (std::int64_t v = 0; v < head.rows; ++v) {
        double sum = 0.0;
        for (std::int64_t c = 0; c < rows.cols; ++c) sum += rows(t, c) * head(v, c);
        logits(t, rank.model.vocab().rows(world.rank()).begin + v) = sum;
      }
    }
  });
  EXPECT_LT(relative_rms(hidden, expected.hidden), tolerance);
  if (!sequence_parallel) {
    EXPECT_LT(relative_rms(logits, expected.logits), tolerance);
  }
}

TEST_P(HuggingFaceParityTest, HiddenStatesAndLogits) {
  const std::filesystem::path folder = std::filesystem::path(REPRISE_LAYERS_TEST_DATA) / GetParam();
  for (const int tp : {1, 2, 4}) {
    SCOPED_TRACE(tp);
    expect_parity<float>(folder, tp, false, 2e-6);
    expect_parity<float>(folder, tp, true, 2e-6);
  }
  expect_parity<BFloat16>(folder, 2, false, 0.03);
}

INSTANTIATE_TEST_SUITE_P(Families, HuggingFaceParityTest,
                         testing::Values("llama_tied", "llama_untied", "llama_biases_llama3_rope", "mistral", "qwen2",
                                         "qwen3"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace reprise
