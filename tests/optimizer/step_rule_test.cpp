#include "optimizer/step_rule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/random.hpp"
#include "core/transfer.hpp"
#include "optimizer/copy_ranges.hpp"
#include "optimizer/update_kernels.hpp"
#include "tests/support/device.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kGroups = 300;  // more than a block has threads
constexpr std::int64_t kDoubles = kGroups * kDoublesPerGroup + kDoublesPerStep;

double draw(std::uint64_t a, std::uint64_t b) {
  return random_normal(5, a, b);
}

TEST(SumGroups, AddsTheSlotsOfEachGroupAndAppendsTheStepsSums) {
  std::vector<GroupSums> slots;
  for (std::uint64_t i = 0; i < 1000; ++i)
    slots.push_back({draw(i, 0), draw(i, 1), draw(i, 2), i % 97 == 0 ? 1.0 : 0.0});
  const std::vector<std::int64_t> begin{0, 0, 1, 700, 1000};  // the first is empty
  const StepSums step{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0};
  const std::vector<double> losses{0.25, -8.0, 7.75};
  on_every_stream([&](const Stream& stream) {
    const auto slots_there = to_device(stream, slots);
    const auto begin_there = to_device(stream, begin);
    Buffer<double> doubles(stream, 4 * kDoublesPerGroup + kDoublesPerStep, "doubles");
    sum_groups(stream, slots_there.view(), begin_there.view(), step, {}, doubles.view());
    const std::vector<double> alone = to_host(stream, doubles.view());
    for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(alone[16 + i], static_cast<double>(i + 1));
    const auto losses_there = to_device(stream, losses);
    const StepSums rest{1.0, 2.0 - (0.25 - 8.0 + 7.75), 3.0, 4.0, 5.0, 6.0, 7.0, 8.0};
    sum_groups(stream, slots_there.view(), begin_there.view(), rest, losses_there.view(), doubles.view());
    const std::vector<double> got = to_host(stream, doubles.view());
    for (std::size_t g = 0; g + 1 < begin.size(); ++g) {
      GroupSums expected;
      for (auto s = static_cast<std::size_t>(begin[g]); s < static_cast<std::size_t>(begin[g + 1]); ++s) {
        expected += slots[s];
      }
      const GroupSums sums = read_group_sums(got.data() + g * kDoublesPerGroup);
      EXPECT_NEAR(sums.g_dot_m, expected.g_dot_m, 1e-11);
      EXPECT_NEAR(sums.g_dot_g, expected.g_dot_g, 1e-11);
      EXPECT_NEAR(sums.m_dot_m, expected.m_dot_m, 1e-11);
      EXPECT_EQ(sums.non_finite, expected.non_finite);
    }
    for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(got[16 + i], static_cast<double>(i + 1));
  });
}

struct Outcome {
  std::vector<UpdateScalars> scalars;
  std::vector<Turn> turns;
  StepDecision decision;
};

Outcome decide_on(const Stream& stream, const StepRule& rule, const std::vector<double>& gathered) {
  const auto gathered_there = to_device(stream, gathered);
  Buffer<double> totals(stream, kDoubles, "totals");
  Buffer<UpdateScalars> scalars(stream, kGroups, "scalars");
  Buffer<Turn> turns(stream, kGroups, "turns");
  Buffer<StepDecision> decision(stream, 1, "decision");
  decide_step(stream, rule, gathered_there.view(), {totals.view(), scalars.view(), turns.view(), decision.view()});
  return {to_host(stream, scalars.view()), to_host(stream, turns.view()), to_host(stream, decision.view())[0]};
}

/// What `ranks` ranks send: vectors' dots at all angles.
std::vector<double> sums_of_ranks(std::size_t ranks) {
  std::vector<double> gathered;
  for (std::size_t r = 0; r < ranks; ++r) {
    for (std::uint64_t g = 0; g < kGroups; ++g) {
      const double angle = 3.0 * static_cast<double>(g) / kGroups, g_norm = 2.0 + static_cast<double>(r + g % 7);
      for (const double value : {g_norm * std::cos(angle), g_norm * g_norm, 1.0, 0.0}) gathered.push_back(value);
    }
    for (const double value : {10.0, 30.0, 5.0, 0.0, 0.25, 2.0, 0.0, 0.0}) gathered.push_back(value);
  }
  return gathered;
}

StepRule usual_rule(bool is_moclip, Obtuse obtuse = Obtuse::kKeep) {
  OptimizerOptions options;
  options.weight_decay = 0.1;
  return {AngleCap(45.0, obtuse), is_moclip, 0.5, make_step_terms(options, 3, 0.01)};
}

TEST(DecideStep, IsThePlainFunctionsOverSumsInRankOrder) {
  const std::vector<double> gathered = sums_of_ranks(3);
  std::vector<double> totals(kDoubles, 0.0);
  for (std::size_t i = 0; i < gathered.size(); ++i) totals[i % totals.size()] += gathered[i];
  GroupSums all;
  for (std::int64_t g = 0; g < kGroups; ++g) all += read_group_sums(totals.data() + g * kDoublesPerGroup);
  on_every_stream([&](const Stream& stream) {
    for (const bool is_moclip : {true, false}) {
      for (const Obtuse obtuse : {Obtuse::kKeep, Obtuse::kDrop, Obtuse::kProject, Obtuse::kReflect, Obtuse::kRotate}) {
        const StepRule rule = usual_rule(is_moclip, obtuse);
        const Outcome outcome = decide_on(stream, rule, gathered);
        const StepDecision expected = decide(0.5, all, read_step_sums(totals.data() + kGroups * kDoublesPerGroup));
        EXPECT_FALSE(outcome.decision.skipped);
        EXPECT_DOUBLE_EQ(outcome.decision.sums.weight, 30.0);
        EXPECT_DOUBLE_EQ(outcome.decision.sums.probe_tokens, 6.0);
        EXPECT_NEAR(outcome.decision.grad_norm, expected.grad_norm, 1e-12 * expected.grad_norm);
        EXPECT_NEAR(outcome.decision.scale, expected.scale, 1e-12 * expected.scale);
        EXPECT_LT(expected.scale, 1.0 / 30.0) << "clipping was put to the test";
        for (std::int64_t g = 0; g < kGroups; ++g) {
          const auto i = static_cast<std::size_t>(g);
          const Turn turn = turn_of(rule, expected, read_group_sums(totals.data() + g * kDoublesPerGroup));
          const UpdateScalars scalars = make_update_scalars(rule.terms, expected.scale * turn.gradient, turn.momentum);
          EXPECT_EQ(outcome.turns[i].measured, is_moclip);
          EXPECT_EQ(outcome.turns[i].turned, turn.turned);
          EXPECT_NEAR(outcome.turns[i].angle, turn.angle, 1e-6);
          EXPECT_FLOAT_EQ(outcome.scalars[i].m_from_m, scalars.m_from_m);
          EXPECT_FLOAT_EQ(outcome.scalars[i].m_from_g, scalars.m_from_g);
          EXPECT_FLOAT_EQ(outcome.scalars[i].root_from_g, scalars.root_from_g);
          EXPECT_NEAR(outcome.scalars[i].root_from_m, scalars.root_from_m, 1e-6f);
          EXPECT_EQ(outcome.scalars[i].tan2, scalars.tan2);
          EXPECT_EQ(outcome.scalars[i].decay, scalars.decay);
          EXPECT_EQ(outcome.scalars[i].eps, scalars.eps);
        }
      }
    }
  });
}

TEST(DecideStep, SkipsWhatIsUnsound) {
  const std::vector<double> sound = sums_of_ranks(2);
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  constexpr std::size_t kTail = kGroups * kDoublesPerGroup, kLastNonFinite = kTail - 1;
  on_every_stream([&](const Stream& stream) {
    const auto is_skipped = [&](std::size_t place, double value) {
      std::vector<double> spoilt = sound;
      spoilt[place] = value;
      const Outcome outcome = decide_on(stream, usual_rule(true), spoilt);
      EXPECT_EQ(outcome.decision.scale > 0.0, !outcome.decision.skipped);
      EXPECT_EQ(outcome.turns[200].measured, !outcome.decision.skipped);
      return outcome.decision.skipped;
    };
    EXPECT_FALSE(is_skipped(0, sound[0]));
    EXPECT_TRUE(is_skipped(kLastNonFinite, 1.0));
    EXPECT_TRUE(is_skipped(5, nan));
    EXPECT_TRUE(is_skipped(5, inf));
    EXPECT_TRUE(is_skipped(kTail, -10.0)) << "the weights cancel";
    EXPECT_TRUE(is_skipped(kTail, inf));
    EXPECT_TRUE(is_skipped(kTail + 1, nan));
    EXPECT_TRUE(is_skipped(kTail + 6, 1.0));
    EXPECT_FALSE(is_skipped(kTail + 3, 1.0)) << "a stop is no error";
  });
}

TEST(CopyRanges, PackAndUnpackMoveWhatTheTableSays) {
  std::vector<float> flat;
  for (int i = 0; i < 3000; ++i) flat.push_back(static_cast<float>(i));
  const std::vector<CopyRange> ranges{{.flat = 16, .packed = 0, .size = 7},
                                      {.flat = 1000, .packed = 7, .size = 1500},
                                      {.flat = 32, .packed = 1507, .size = 1}};
  on_every_stream([&](const Stream& stream) {
    const auto table = to_device(stream, ranges);
    const auto from = to_device(stream, flat);
    Buffer<float> packed(stream, 1508, "packed"), back(stream, 3000, "back");
    pack_ranges(stream, table.view(), from.view(), packed.view());
    unpack_ranges(stream, table.view(), packed.view(), back.view());
    const std::vector<float> packed_values = to_host(stream, packed.view()), values = to_host(stream, back.view());
    EXPECT_EQ(packed_values[6], 22.0f);
    EXPECT_EQ(packed_values[7], 1000.0f);
    EXPECT_EQ(packed_values[1507], 32.0f);
    for (std::size_t i = 0; i < 3000; ++i) {
      const bool moved = (16 <= i && i < 23) || (1000 <= i && i < 2500) || i == 32;
      EXPECT_EQ(values[i], moved ? static_cast<float>(i) : 0.0f);
    }
  });
}

}  // namespace

}  // namespace reprise
