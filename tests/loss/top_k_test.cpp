// Collection from hidden states: against the oracle on float64 logits, for every layout, and what it sends.

#include "loss/top_k.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "core/random.hpp"
#include "tests/loss/top_k_problem.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kVocab = 900, kPadded = 4, kDepth = 24;

/// Hidden states and head weights of a made-up base model, and samples to collect from.
struct Base {
  CollectProblem problem;
  std::vector<float> hidden, weight;

  explicit Base(std::int64_t samples, std::int64_t length = 40) {
    for (std::int64_t s = 0; s < samples; ++s) {
      problem.add_sample(static_cast<std::uint64_t>(3 * s + 1), length - s % 5, kVocab);
    }
    for (std::int64_t i = 0; i < problem.rows * kDepth; ++i) {
      hidden.push_back(static_cast<float>(random_normal(1, static_cast<std::uint64_t>(i))));
    }
    for (std::int64_t i = 0; i < (kVocab + kPadded) * kDepth; ++i) {
      const double normal = random_normal(2, static_cast<std::uint64_t>(i));
      weight.push_back(i / kDepth < kVocab ? static_cast<float>(normal) * 0.6f : 50.0f);
    }
  }
  [[nodiscard]] std::vector<float> logits(const LossOptions& options = {}) const {
    std::vector<float> values;
    for (const std::int32_t row : problem.row) {
      for (std::int64_t id = 0; id < kVocab + kPadded; ++id) {
        double sum = 0.0;
        for (std::int64_t d = 0; d < kDepth; ++d) {
          sum += static_cast<double>(hidden[static_cast<std::size_t>(row * kDepth + d)]) *
                 static_cast<double>(weight[static_cast<std::size_t>(id * kDepth + d)]);
        }
        sum *= static_cast<double>(options.logit_scale);
        const auto cap = static_cast<double>(options.softcap);
        values.push_back(static_cast<float>(cap > 0.0 ? cap * std::tanh(sum / cap) : sum));
      }
    }
    return values;
  }
};

struct Layout {
  VocabPartition vocab;
  bool sequence_parallel = false;
  LossOptions loss = {};
};

/// This rank's records of the samples [begin, end) as one micro-batch.
template <class T>
std::vector<SampleRecords> collect_range(Communicator& world, const Base& base, const Layout& layout,
                                         const TopKOptions& options, std::size_t begin, std::size_t end) {
  CollectProblem part;
  std::int64_t first_row = 0;
  for (std::size_t s = 0; s < end; ++s) {
    if (s == begin) first_row = part.rows, part = CollectProblem{};
    const std::int64_t length = 40 - static_cast<std::int64_t>(s) % 5;
    part.add_sample(base.problem.sample_id[s], length, kVocab);
  }
  part.set_owners(world.size());
  const ProcessGroups groups = ProcessGroups::make(world, world.size());
  const Stream& stream = test_stream();
  Arena arena(stream);
  const Context context{stream, groups, arena, layout.sequence_parallel};
  const auto convert = [](const std::vector<float>& from, std::int64_t first, std::int64_t count) {
    std::vector<T> values;
    for (std::int64_t i = first; i < first + count; ++i) values.push_back(T(from[static_cast<std::size_t>(i)]));
    return to_device(values);
  };
  const Range rows = layout.sequence_parallel ? even_shard(part.rows, world.size(), world.rank()) : Range{0, part.rows};
  const Range ids = layout.vocab.rows(world.rank());
  const Buffer<T> hidden = convert(base.hidden, (first_row + rows.begin) * kDepth, rows.size() * kDepth);
  const Buffer<T> weight = convert(base.weight, ids.begin * kDepth, ids.size() * kDepth);
  return collect_top_k<T>(context, {hidden.view(), rows.size(), kDepth}, {weight.view(), ids.size(), kDepth},
                          layout.vocab, part.batch(), options, layout.loss);
}

/// All records, in micro-batches of `micro_batch` samples.
template <class T>
RecordsById collect(const Base& base, const Layout& layout, const TopKOptions& options, std::size_t micro_batch) {
  RecordsById all;
  std::mutex mutex;
  run_device_ranks(layout.vocab.tp_size(), [&](Communicator& world) {
    const std::size_t samples = base.problem.sample_id.size();
    for (std::size_t s = 0; s < samples; s += micro_batch) {
      for (const auto& records :
           collect_range<T>(world, base, layout, options, s, std::min(samples, s + micro_batch))) {
        const std::lock_guard lock(mutex);
        EXPECT_TRUE(all.emplace(records.sample_id, records).second);
      }
    }
  });
  return all;
}

VocabPartition even(int tp) {
  return VocabPartition::even(kVocab + kPadded, kVocab, tp);
}

/// Tokens whose sets differ. What differs must be within `rounding` of the last value of the set.
std::int64_t count_different(const RecordsById& a, const RecordsById& b, const Base& base,
                             const std::vector<float>& logits, float rounding) {
  std::int64_t different = 0;
  std::int64_t token = 0;
  for (const std::uint64_t id : base.problem.sample_id) {
    const SampleRecords &x = a.at(id), &y = b.at(id);
    EXPECT_EQ(x.position, y.position);
    for (std::size_t t = 0; t < x.position.size(); ++t, ++token) {
      const std::vector<std::uint32_t> of_x(x.ids.begin() + x.id_begin[t], x.ids.begin() + x.id_begin[t + 1]);
      const std::vector<std::uint32_t> of_y(y.ids.begin() + y.id_begin[t], y.ids.begin() + y.id_begin[t + 1]);
      if (of_x == of_y) continue;
      ++different;
      std::vector<std::uint32_t> only;
      std::set_symmetric_difference(of_x.begin(), of_x.end(), of_y.begin(), of_y.end(), std::back_inserter(only));
      const float* row = logits.data() + token * (kVocab + kPadded);
      float last = std::numeric_limits<float>::infinity();
      for (const std::uint32_t i : of_x) last = i == x.gold[t] ? last : std::min(last, row[i]);
      for (const std::uint32_t i : only) EXPECT_NEAR(row[i], last, rounding);
    }
  }
  return different;
}

TEST(TopK, AgreesWithTheOracle) {
  const Base base(6);
  for (const LossOptions loss : {LossOptions{}, LossOptions{.logit_scale = 0.5f, .softcap = 3.0f}}) {
    const std::vector<float> logits = base.logits(loss);
    for (const TopKOptions& options :
         {TopKOptions{.tau = 0.9, .k_max = 50}, TopKOptions{.tau = 1.0, .k_max = 7},
          TopKOptions{.tau = 0.8, .k_max = 100, .positions = PositionPolicy::kBucket, .budget = 9, .seed = 4}}) {
      const RecordsById records = collect<float>(base, {even(1), false, loss}, options, 6);
      expect_naive(records, logits, even(1), base.problem, options);
    }
  }
}

TEST(TopK, LayoutChangesSetsByRoundingOnly) {
  const bool is_cpu = test_stream().is_cpu();
  const Base base(is_cpu ? 40 : 6);
  const std::vector<float> logits = base.logits();
  const TopKOptions options{.tau = 0.9, .k_max = 60};
  const RecordsById whole = collect<float>(base, {even(1)}, options, 40);
  std::int64_t different = 0, compared = 0;
  const auto compare = [&](const Layout& layout, std::size_t micro_batch) {
    different += count_different(whole, collect<float>(base, layout, options, micro_batch), base, logits, 1e-5f);
    compared += base.problem.tokens();
  };
  for (const int tp : on_cpu_or<std::vector<int>>({2, 3, 4, 8}, {3})) compare({even(tp)}, 40);
  for (const int tp : on_cpu_or<std::vector<int>>({1, 2, 3, 4}, {2})) compare({even(tp), true}, 20);
  for (const std::size_t micro_batch : on_cpu_or<std::vector<int>>({1, 7}, {4})) compare({even(2)}, micro_batch);
  compare({{{0, 0, 500, kVocab + kPadded}, kVocab}}, 40);
  EXPECT_GE(compared, is_cpu ? 10000 : 600);
  EXPECT_LT(different * 1000, std::max<std::int64_t>(compared, 1001));
}

TEST(TopK, BFloat16) {
  Base base(on_cpu_or(10, 3));
  for (float& value : base.hidden) value = static_cast<float>(BFloat16(value));
  for (float& value : base.weight) value = static_cast<float>(BFloat16(value));
  const TopKOptions options{.tau = 0.9, .k_max = 60};
  const RecordsById expected = collect<float>(base, {even(1)}, options, 10);
  for (const int tp : on_cpu_or<std::vector<int>>({1, 2, 4}, {2})) {
    for (const bool sequence_parallel : {false, true}) {
      const RecordsById found = collect<BFloat16>(base, {even(tp), sequence_parallel}, options, 10);
      EXPECT_LE(count_different(expected, found, base, base.logits(), 1e-5f), 1);
    }
  }
}

TEST(TopK, RepeatsBitForBit) {
  const Base base(on_cpu_or(8, 4));
  const Layout layout{even(3)};
  const RecordsById first = collect<float>(base, layout, {.tau = 0.9}, 3);
  for (const auto& [id, records] : collect<float>(base, layout, {.tau = 0.9}, 3)) {
    EXPECT_EQ(records.ids, first.at(id).ids);
    EXPECT_EQ(records.mass, first.at(id).mass);
    EXPECT_EQ(records.confidence, first.at(id).confidence);
  }
}

TEST(TopK, SendsStatisticsOnceAndCandidatesToTheirOwners) {
  const Base base(5);
  for (const int tp : on_cpu_or<std::vector<int>>({1, 2, 4}, {1, 3})) {
    for (const bool sequence_parallel : {false, true}) {
      run_device_ranks(tp, [&](Communicator& world) {
        CollectProblem problem = base.problem;
        problem.set_owners(tp);
        const ProcessGroups groups = ProcessGroups::make(world, tp);
        Arena arena(test_stream());
        const Context context{test_stream(), groups, arena, sequence_parallel};
        const VocabPartition vocab = even(tp);
        const Range rows = sequence_parallel ? even_shard(problem.rows, tp, world.rank()) : Range{0, problem.rows};
        const Range ids = vocab.rows(world.rank());
        const TopKOptions options{.k_max = 30};
        const auto hidden = to_device(base.hidden), weight = to_device(base.weight);
        groups.tp->reset_counts();
        (void)collect_top_k<float>(context, {hidden.view().data + rows.begin * kDepth, rows.size(), kDepth},
                                   {weight.view().data + ids.begin * kDepth, ids.size(), kDepth}, vocab,
                                   problem.batch(), options);
        const CollectiveCount gathers = groups.tp->count(Collective::kAllGather);
        const CollectiveCount exchanges = groups.tp->count(Collective::kAllToAll);
        EXPECT_EQ(exchanges.calls, 1);
        std::int64_t foreign = 0;
        for (std::size_t s = 0; s < problem.owner.size(); ++s) {
          const std::int64_t tokens = problem.sample_begin[s + 1] - problem.sample_begin[s];
          foreign += problem.owner[s] == world.rank() ? 0 : tokens;
        }
        EXPECT_EQ(exchanges.bytes, foreign * 30 * 8);
        EXPECT_EQ(groups.tp->count(Collective::kAllReduce).calls, 0);
        if (!sequence_parallel) {
          EXPECT_EQ(gathers.calls, 1);
          EXPECT_EQ(gathers.bytes, problem.tokens() * 16 * (tp - 1));
        } else {
          EXPECT_LE(gathers.calls, 3);  // the selected rows, and how many rows there are
        }
      });
    }
  }
}

TEST(TopK, NoTokens) {
  Base base(0);
  EXPECT_TRUE(collect<float>(base, {even(2)}, {}, 1).empty());
  base.problem.add_sample(5, 0, kVocab);
  run_device_ranks(3, [&](Communicator& world) {
    const auto samples = collect_range<float>(world, base, {even(3)}, {}, 0, 0);
    EXPECT_TRUE(samples.empty());
  });
}

TEST(TopK, WrongInput) {
  const Base base(2);
  const auto refused = [&](ErrorKind kind, const std::vector<std::string>& parts, const TopKOptions& options,
                           const Base& changed, const LossOptions& loss = {}) {
    for (const int tp : {1, 3}) {
      run_device_ranks(tp, [&](Communicator& world) {  // on every rank
        expect_error(kind, parts, [&] {
          (void)collect_range<float>(world, changed, {even(tp), false, loss}, options, 0, 2);
        });
      });
    }
  };
  refused(ErrorKind::kUsage, {"replay.tau = 0"}, {.tau = 0.0}, base);
  refused(ErrorKind::kUsage, {"replay.tau = nan"}, {.tau = std::numeric_limits<double>::quiet_NaN()}, base);
  refused(ErrorKind::kUsage, {"replay.k_max = 0"}, {.k_max = 0}, base);
  refused(ErrorKind::kUsage, {"replay.k_min = 0"}, {.k_min = 0}, base);
  refused(ErrorKind::kUsage, {"replay.k_min = 9", "k_max = 8"}, {.k_max = 8, .k_min = 9}, base);
  if (!test_stream().is_cpu()) refused(ErrorKind::kUsage, {"replay.k_max = 5000", "4096"}, {.k_max = 5000}, base);
  refused(ErrorKind::kUsage, {"replay.budget = 5"}, {.budget = 5}, base);
  refused(ErrorKind::kUsage, {"softcap"}, {}, base, {.softcap = -1.0f});

  Base changed = base;
  changed.hidden[static_cast<std::size_t>(changed.problem.row[4]) * kDepth + 3] =
      std::numeric_limits<float>::infinity();
  refused(ErrorKind::kNonFinite, {"token 4"}, {}, changed);
  changed = base;  // in the shard of one rank only
  changed.weight[static_cast<std::size_t>(7 * kDepth)] = std::numeric_limits<float>::quiet_NaN();
  refused(ErrorKind::kNonFinite, {"token 0", "vocabulary shard of tp rank 0"}, {}, changed);
}

TEST(TopK, GoldOutsideTheVocabulary) {
  const Base base(1);
  run_device_ranks(2, [&](Communicator& world) {
    CollectProblem problem = base.problem;
    problem.set_owners(2);
    problem.gold[1] = kVocab;  // the first padded row
    const ProcessGroups groups = ProcessGroups::make(world, 2);
    Arena arena(test_stream());
    const Range ids = even(2).rows(world.rank());
    const auto hidden = to_device(base.hidden), weight = to_device(base.weight);
    expect_error(ErrorKind::kData, {"the next token is 900", "vocabulary has 900"}, [&] {
      (void)collect_top_k<float>({test_stream(), groups, arena}, {hidden.view(), problem.rows, kDepth},
                                 {weight.view().data + ids.begin * kDepth, ids.size(), kDepth}, even(2),
                                 problem.batch(), {});
    });
  });
}

TEST(TopK, Statistics) {
  SampleRecords records;
  records.position = {0, 1, 2, 5};
  records.gold = {1, 2, 3, 4};
  records.flags = {0, SampleRecords::kGoldForced, 0, SampleRecords::kGoldForced};
  records.mass = {0.5f, 1.0f, 0.25f, 0.75f};
  records.confidence = {0.1f, 0.95f, 1.0f, 0.45f};
  records.ids = {1, 2, 3, 3, 4, 5, 6};
  records.id_begin = {0, 1, 2, 4, 7};
  CollectStatistics statistics;
  statistics.add(records, 3);
  EXPECT_EQ(statistics.samples, 1);
  EXPECT_EQ(statistics.tokens, 4);
  EXPECT_EQ(statistics.ids, 7);
  EXPECT_EQ(statistics.gold_outside, 2);
  EXPECT_EQ(statistics.at_k_max, 1);
  EXPECT_EQ(statistics.mass, 2.5);
  EXPECT_EQ(statistics.set_size, (std::vector<std::int64_t>{0, 2, 1, 1}));
  EXPECT_EQ(statistics.bucket, (std::vector<std::int64_t>{1, 0, 1, 0, 2}));
  statistics.add(records, 3);
  EXPECT_EQ(statistics.set_size, (std::vector<std::int64_t>{0, 4, 2, 2}));
}

}  // namespace
}  // namespace reprise
