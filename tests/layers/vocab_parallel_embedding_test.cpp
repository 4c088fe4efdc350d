#include "layers/vocab_parallel_embedding.hpp"

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kVocab = 23;

struct Lookup {
  Table output;    // [tokens, hidden]
  Table d_weight;  // [kVocab, hidden], gradient of sum(output * d_output)
};

/// Runs forward and backward on the ranks of a partition.
template <class T>
Lookup run(const VocabPartition& vocab, bool sequence_parallel, const std::vector<std::int32_t>& tokens,
           const Table& weight, const Table& d_output, int threads = 1) {
  Lookup result;
  const std::int64_t hidden = d_output.cols;
  result.output = Table(d_output.rows, hidden);
  result.d_weight = Table(kVocab, hidden);
  std::mutex mutex;
  run_device_ranks(vocab.tp_size(), [&](Communicator& world) {
    ThreadPool pool(threads);
    const Stream stream = rank_stream(pool);
    Arena arena(stream);
    const ProcessGroups groups = ProcessGroups::make(world, vocab.tp_size());
    ParameterSet<T> parameters;
    const VocabParallelEmbedding<T> embedding(parameters, vocab, hidden, world.rank());
    parameters.allocate(stream, 1 << 20, 1);
    const Range ids = vocab.rows(world.rank());
    copy_to_device<T>(stream, values_of<T>(block_of(weight, ids.begin, ids.size(), 0, hidden)),
                      parameters.value(0).flat());
    const Context context{stream, groups, arena, sequence_parallel};
    const bool is_cut = sequence_parallel && vocab.tp_size() > 1;
    const Range rows = is_cut ? even_shard(d_output.rows, vocab.tp_size(), world.rank()) : Range{0, d_output.rows};
    const auto on_device = to_device(stream, tokens);
    const MatrixView<T> embedded = embedding.forward(context, on_device.view());
    ASSERT_EQ(embedded.rows, rows.size());
    const MatrixView<T> gradient = arena.matrix<T>(rows.size(), hidden);
    copy_to_device<T>(stream, values_of<T>(block_of(d_output, rows.begin, rows.size(), 0, hidden)), gradient.flat());
    embedding.backward(context, on_device.view(), tokens, gradient);
    const Table output = table_of(stream, embedded), d_weight = table_of(stream, parameters.gradient(0));
    const std::lock_guard lock(mutex);
    std::copy(output.data.begin(), output.data.end(), result.output.data.begin() + rows.begin * hidden);
    std::copy(d_weight.data.begin(), d_weight.data.end(), result.d_weight.data.begin() + ids.begin * hidden);
  });
  return result;
}

std::vector<std::int32_t> some_tokens() {
  std::vector<std::int32_t> tokens = {0, 22, 7, 7, 7, 11, 0};
  for (int i = 0; i < 300; ++i) tokens.push_back(i * i % 5);  // few ids, many times
  return tokens;
}

void expect_definition_for_every_partition(std::int64_t hidden) {
  const std::vector<std::int32_t> tokens = some_tokens();
  const auto count = static_cast<std::int64_t>(tokens.size());
  const Table weight = random_table(kVocab, hidden, 1.0, 1), d_output = random_table(count, hidden, 1.0, 2);
  Lookup want{Table(count, hidden), Table(kVocab, hidden)};
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t c = 0; c < hidden; ++c) {
      want.output(t, c) = weight(tokens[static_cast<std::size_t>(t)], c);
      want.d_weight(tokens[static_cast<std::size_t>(t)], c) += d_output(t, c);
    }
  }
  std::vector<VocabPartition> partitions;
  for (const int tp : {1, 2, 3, 4, 8}) partitions.push_back(VocabPartition::even(kVocab, kVocab, tp));
  partitions.push_back({{0, 1, 1, 20, kVocab}, kVocab});  // uneven, with an empty part
  Table bits;
  for (const VocabPartition& vocab : partitions) {
    for (const bool sequence_parallel : {false, true}) {
      SCOPED_TRACE(testing::Message() << "hidden " << hidden << " tp " << vocab.tp_size() << " sequence parallel "
                                      << sequence_parallel);
      const Lookup got = run<float>(vocab, sequence_parallel, tokens, weight, d_output, 2);
      EXPECT_EQ(got.output.data, want.output.data);  // exact: one addend
      EXPECT_LT(relative_difference(got.d_weight, want.d_weight), 1e-5);
      if (bits.rows == 0) bits = got.d_weight;
      EXPECT_EQ(got.d_weight.data, bits.data);  // a row's sum runs in token order wherever it lies
    }
  }
}

TEST(VocabParallelEmbedding, EqualsItsDefinitionForEveryPartition) {
  expect_definition_for_every_partition(5);
  expect_definition_for_every_partition(24);
}

TEST(VocabParallelEmbedding, BFloat16LookupIsExact) {
  const std::vector<std::int32_t> tokens = {3, 22, 3};
  Table weight = random_table(kVocab, 8, 1.0, 1);
  for (double& x : weight.data) x = static_cast<double>(static_cast<float>(BFloat16(static_cast<float>(x))));
  const Lookup got =
      run<BFloat16>(VocabPartition::even(kVocab, kVocab, 4), true, tokens, weight, random_table(3, 8, 1.0, 2));
  for (std::int64_t c = 0; c < 8; ++c) EXPECT_EQ(got.output(1, c), weight(22, c));
}

TEST(VocabParallelEmbedding, NoTokens) {
  const Lookup got =
      run<float>(VocabPartition::even(kVocab, kVocab, 3), true, {}, random_table(kVocab, 5, 1.0, 1), Table(0, 5));
  EXPECT_EQ(got.d_weight.data, Table(kVocab, 5).data);
}

}  // namespace
}  // namespace reprise
