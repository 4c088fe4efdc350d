#include <gtest/gtest.h>

#include <random>

#include "tests/loss/top_k_problem.hpp"
#include "tests/support/mpi_test_main.hpp"

namespace reprise {
namespace {

TEST(TopKMpi, SetsAreTheOracles) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  Communicator& world = mpi_test_world();
  const Stream stream(CpuStream{});
  for (const std::int64_t vocab_size : {3, 700}) {
    CollectProblem problem;
    for (const std::uint64_t id : {8, 1, 3, 2}) problem.add_sample(id, 10, vocab_size);
    std::vector<float> logits;
    for (std::int64_t i = 0; i < problem.tokens() * (vocab_size + 2); ++i) {
      logits.push_back(i % (vocab_size + 2) < vocab_size ? std::round(4.0f * normal(random)) / 4.0f : 99.0f);
    }
    const VocabPartition vocab = VocabPartition::even(vocab_size + 2, vocab_size, world.size());
    const TopKOptions options{.tau = 0.9, .k_max = 40, .positions = PositionPolicy::kBucket, .budget = 5};
    for (const SampleRecords& records : collect_from_logits(world, stream, logits, vocab, problem, options)) {
      CollectProblem one;  // this sample alone, with its part of the logits
      const auto s = static_cast<std::size_t>(
          std::find(problem.sample_id.begin(), problem.sample_id.end(), records.sample_id) - problem.sample_id.begin());
      one.add_sample(records.sample_id, 10, vocab_size);
      const std::vector<float> part(logits.begin() + problem.sample_begin[s] * (vocab_size + 2),
                                    logits.begin() + problem.sample_begin[s + 1] * (vocab_size + 2));
      expect_naive({{records.sample_id, records}}, part, VocabPartition::even(vocab_size + 2, vocab_size, 1), one,
                   options);
    }
  }
}

}  // namespace
}  // namespace reprise
