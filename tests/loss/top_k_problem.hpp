#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "loss/top_k.hpp"
#include "loss/top_k_exchange.hpp"
#include "tests/support/device.hpp"

namespace reprise {

/// The first value on a CPU; else the second, so that emulation stays quick.
template <class T>
T on_cpu_or(const T& on_cpu, const T& elsewhere) {
  return test_stream().is_cpu() ? on_cpu : elsewhere;
}

/// Samples with targets at some of their rows; every rank of a test builds the same.
struct CollectProblem {
  std::int64_t rows = 0;
  std::vector<std::int32_t> row, gold, owner;
  std::vector<std::uint32_t> position;
  std::vector<std::int64_t> sample_begin{0};
  std::vector<std::uint64_t> sample_id, sample_hash;

  /// A sample of `length` rows whose targets are about three quarters of them.
  void add_sample(std::uint64_t id, std::int64_t length, std::int64_t vocab_size);
  void set_owners(int tp_size);
  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(row.size()); }
  [[nodiscard]] CollectBatch batch() const {
    return {row, gold, position, sample_begin, sample_id, sample_hash, owner};
  }
};

using RecordsById = std::map<std::uint64_t, SampleRecords>;

/// All samples' records from logits [tokens, columns of all shards], each rank given its own columns, on thread ranks
/// and their device.
RecordsById collect_from_logits(const std::vector<float>& logits, const VocabPartition& vocab, CollectProblem problem,
                                const TopKOptions& options);
/// The same inside one rank of any transport, on the device of `stream`; this rank's samples.
std::vector<SampleRecords> collect_from_logits(Communicator& world, const Stream& stream,
                                               const std::vector<float>& logits, const VocabPartition& vocab,
                                               CollectProblem problem, const TopKOptions& options);

/// The rule in its plainest form: sort, add up in long double, put gold in.
struct NaiveSet {
  std::vector<std::uint32_t> ids;
  bool gold_forced = false;
  double mass = 0.0, confidence = 0.0;
};
NaiveSet naive_set(const float* logits, std::int64_t vocab_size, std::int32_t gold, const TopKOptions& options);

/// Holds every record of every sample against naive_set and against the position policy.
void expect_naive(const RecordsById& records, const std::vector<float>& logits, const VocabPartition& vocab,
                  const CollectProblem& problem, const TopKOptions& options);

}  // namespace reprise
