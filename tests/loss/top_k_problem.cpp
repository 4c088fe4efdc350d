#include "tests/loss/top_k_problem.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "core/random.hpp"
#include "core/thread_pool.hpp"
#include "tests/loss/make_records.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {

void CollectProblem::add_sample(std::uint64_t id, std::int64_t length, std::int64_t vocab_size) {
  for (std::int64_t p = 0; p < length; ++p) {
    const std::uint64_t bits = random_bits(99, id, static_cast<std::uint64_t>(p));
    if (bits % 4 != 0) {
      row.push_back(static_cast<std::int32_t>(rows + p));
      gold.push_back(static_cast<std::int32_t>((bits >> 20) % static_cast<std::uint64_t>(vocab_size)));
      position.push_back(static_cast<std::uint32_t>(p));
    }
  }
  rows += length;
  sample_begin.push_back(tokens());
  sample_id.push_back(id);
  sample_hash.push_back(id * 31);
}

void CollectProblem::set_owners(int tp_size) {
  owner.clear();
  for (const std::uint64_t id : sample_id) {
    owner.push_back(static_cast<std::int32_t>(id % static_cast<std::uint64_t>(tp_size)));
  }
}

std::vector<SampleRecords> collect_from_logits(Communicator& world, const Stream& stream,
                                               const std::vector<float>& logits, const VocabPartition& vocab,
                                               CollectProblem problem, const TopKOptions& options) {
  const ProcessGroups groups = ProcessGroups::make(world, world.size());
  Arena arena(stream);
  const Context context{stream, groups, arena};
  problem.set_owners(world.size());

  const Range ids = vocab.ids(world.rank());
  const std::int64_t tokens = problem.tokens(), columns = vocab.bounds.back();
  std::vector<float> own(static_cast<std::size_t>(tokens * ids.size()));
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::copy_n(logits.begin() + t * columns + ids.begin, ids.size(), own.begin() + t * ids.size());
  }
  auto device_logits = to_device(stream, own);
  const auto gold = to_device(stream, problem.gold);
  const auto statistics = arena.vector<ShardStatistics>(tokens);
  const auto candidates = arena.matrix<Candidate>(tokens, std::min(options.k_max, ids.size()));
  local_top_k(stream, arena, {device_logits.view(), tokens, ids.size()}, {}, ids.begin, options.k_max, gold.view(),
              statistics, candidates);
  ThreadPool pool(2);
  return exchange_top_k(context, {statistics, candidates}, vocab, problem.batch(), options, CpuStream{&pool});
}

RecordsById collect_from_logits(const std::vector<float>& logits, const VocabPartition& vocab, CollectProblem problem,
                                const TopKOptions& options) {
  RecordsById all;
  std::mutex mutex;
  run_device_ranks(vocab.tp_size(), [&](Communicator& world) {
    ThreadPool pool(2);
    const Stream stream = test_stream().is_cpu() ? Stream(CpuStream{&pool}) : test_stream();
    const auto samples = collect_from_logits(world, stream, logits, vocab, problem, options);
    const std::lock_guard lock(mutex);
    for (const SampleRecords& records : samples) {
      EXPECT_EQ(records.sample_id % static_cast<std::uint64_t>(world.size()), static_cast<std::uint64_t>(world.rank()));
      EXPECT_TRUE(all.emplace(records.sample_id, records).second);
    }
  });
  return all;
}

NaiveSet naive_set(const float* logits, std::int64_t vocab_size, std::int32_t gold, const TopKOptions& options) {
  std::vector<std::uint32_t> order(static_cast<std::size_t>(vocab_size));
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  const auto weight = [&](std::uint32_t id) {
    return std::exp(static_cast<long double>(logits[id]) - static_cast<long double>(logits[order[0]]));
  };
  long double total = 0.0L, sum = 0.0L;
  for (const std::uint32_t id : order) total += weight(id);

  NaiveSet set;
  const auto most = static_cast<std::size_t>(std::min(options.k_max, vocab_size));
  const auto least = static_cast<std::size_t>(std::min(options.k_min, vocab_size));
  while (set.ids.size() < most && (options.tau >= 1.0 || set.ids.size() < least ||
                                   sum < static_cast<long double>(options.tau) * total * (1.0L - 0x1p-40L))) {
    set.ids.push_back(order[set.ids.size()]);
    sum += weight(set.ids.back());
  }
  const auto gold_id = static_cast<std::uint32_t>(gold);
  set.gold_forced = std::find(set.ids.begin(), set.ids.end(), gold_id) == set.ids.end();
  if (set.gold_forced && set.ids.size() == static_cast<std::size_t>(options.k_max)) set.ids.pop_back();
  if (set.gold_forced) set.ids.push_back(gold_id);
  long double mass = 0.0L;
  for (const std::uint32_t id : set.ids) mass += weight(id);
  set.mass = static_cast<double>(mass / total);
  set.confidence = static_cast<double>(weight(gold_id) / total);
  std::sort(set.ids.begin(), set.ids.end());
  return set;
}

void expect_naive(const RecordsById& records, const std::vector<float>& logits, const VocabPartition& vocab,
                  const CollectProblem& problem, const TopKOptions& options) {
  ASSERT_EQ(records.size(), problem.sample_id.size());
  for (std::size_t s = 0; s < problem.sample_id.size(); ++s) {
    const SampleRecords& found = records.at(problem.sample_id[s]);
    EXPECT_EQ(found.sample_hash, problem.sample_hash[s]);
    const std::int64_t begin = problem.sample_begin[s], count = problem.sample_begin[s + 1] - begin;
    const auto cut = [begin, count](const auto& from) {
      return std::vector(from.begin() + begin, from.begin() + begin + count);
    };
    std::vector<NaiveSet> sets;
    std::vector<float> confidence;
    for (std::int64_t t = begin; t < begin + count; ++t) {
      sets.push_back(naive_set(logits.data() + t * vocab.bounds.back(), vocab.vocab_size,
                               problem.gold[static_cast<std::size_t>(t)], options));
      confidence.push_back(static_cast<float>(sets.back().confidence));
    }
    const auto chosen = select_positions(options.positions, options.budget, options.seed, problem.sample_id[s],
                                         cut(problem.position), confidence);
    ASSERT_EQ(found.size(), static_cast<std::int64_t>(chosen.size()));
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto token = static_cast<std::size_t>(begin + chosen[i]);
      const NaiveSet& expected = sets[static_cast<std::size_t>(chosen[i])];
      const std::vector<std::uint32_t> ids(found.ids.begin() + found.id_begin[i],
                                           found.ids.begin() + found.id_begin[i + 1]);
      ASSERT_EQ(ids, expected.ids) << "sample " << s << " token " << token;
      EXPECT_EQ(found.position[i], problem.position[token]);
      EXPECT_EQ(found.gold[i], static_cast<std::uint32_t>(problem.gold[token]));
      EXPECT_EQ(found.flags[i], expected.gold_forced ? SampleRecords::kGoldForced : 0);
      EXPECT_NEAR(found.mass[i], expected.mass, 1e-6);
      EXPECT_NEAR(found.confidence[i], expected.confidence, 1e-5 * expected.confidence + 1e-30);
    }
  }
}

}  // namespace reprise
