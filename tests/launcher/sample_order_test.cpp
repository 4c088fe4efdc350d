#include "launcher/sample_order.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

const std::vector<std::int64_t> kSizes = {10, 7, 25};

/// (prefix, document in it) of sample n.
std::pair<std::size_t, std::int64_t> place(const SampleOrder& order, const std::vector<std::int64_t>& sizes,
                                           std::int64_t n) {
  std::int64_t document = order.document(n);
  std::size_t prefix = 0;
  while (document >= sizes[prefix]) document -= sizes[prefix++];
  return {prefix, document};
}

TEST(SampleOrder, WithoutWeightsEveryEpochHoldsEveryDocumentOnce) {
  const SampleOrder order(kSizes, {}, true, 3);
  EXPECT_EQ(order.size(), 42);
  for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
    std::set<std::int64_t> documents;
    for (std::int64_t i = 0; i < 42; ++i) documents.insert(order.document(42 * epoch + i));
    EXPECT_EQ(documents.size(), 42u);
  }
  EXPECT_DOUBLE_EQ(order.share(2), 25.0 / 42.0);
}

TEST(SampleOrder, OnePrefixIsSeenAlikeWithAndWithoutAWeight) {
  const SampleOrder plain({100}, {}, true, 3), weighted({100}, {5.0}, true, 3);
  for (std::int64_t n = 0; n < 500; ++n) EXPECT_EQ(plain.document(n), weighted.document(n));
}

/// The largest deficit, sample after sample, in exact numbers: weights are whole.
TEST(SampleOrder, ThePrefixWithTheLargestDeficitIsNext) {
  const std::vector<std::int64_t> weights = {5, 2, 1};
  const SampleOrder order(kSizes, {5.0, 2.0, 1.0}, true, 3);
  std::vector<std::int64_t> had(3, 0);
  for (std::int64_t n = 0; n < 1000; ++n) {
    std::size_t expected = 0;
    for (std::size_t p = 1; p < 3; ++p) {
      if (weights[p] * (n + 1) - 8 * had[p] > weights[expected] * (n + 1) - 8 * had[expected]) expected = p;
    }
    ASSERT_EQ(place(order, kSizes, n).first, expected) << n;
    ++had[expected];
    // So the mixture holds at every moment, not only on average.
    for (std::size_t p = 0; p < 3; ++p) {
      EXPECT_LT(std::abs(static_cast<double>(had[p]) - static_cast<double>(weights[p] * (n + 1)) / 8.0), 1.0 + 1e-9);
    }
  }
  EXPECT_DOUBLE_EQ(order.share(0), 5.0 / 8.0);
}

TEST(SampleOrder, EveryPrefixGoesRoundInEpochsOfItsOwn) {
  const SampleOrder order(kSizes, {0.5, 0.3, 0.2}, true, 3);
  std::vector<std::vector<std::int64_t>> drawn(3);
  for (std::int64_t n = 0; n < 1000; ++n) {
    const auto [prefix, document] = place(order, kSizes, n);
    drawn[prefix].push_back(document);
  }
  EXPECT_EQ(drawn[0].size(), 500u);
  EXPECT_EQ(drawn[1].size(), 300u);
  for (std::size_t p = 0; p < 3; ++p) {
    const auto size = static_cast<std::size_t>(kSizes[p]);
    const std::vector<std::int64_t> first(drawn[p].begin(), drawn[p].begin() + kSizes[p]);
    for (std::size_t begin = 0; begin + size <= drawn[p].size(); begin += size) {
      std::vector<std::int64_t> epoch(drawn[p].begin() + static_cast<std::int64_t>(begin),
                                      drawn[p].begin() + static_cast<std::int64_t>(begin + size));
      if (begin > 0) {
        EXPECT_NE(epoch, first) << "a later epoch repeats the order of the first";
      }
      std::sort(epoch.begin(), epoch.end());
      for (std::size_t d = 0; d < size; ++d) EXPECT_EQ(epoch[d], static_cast<std::int64_t>(d));
    }
  }
}

TEST(SampleOrder, WithoutShuffleEachPrefixIsReadInOrder) {
  const SampleOrder order({4, 3}, {1.0, 1.0}, false, 3);
  std::vector<std::int64_t> documents;
  for (std::int64_t n = 0; n < 10; ++n) documents.push_back(order.document(n));
  EXPECT_EQ(documents, (std::vector<std::int64_t>{0, 4, 1, 5, 2, 6, 3, 4, 0, 5}));
}

TEST(SampleOrder, SharesThatNoShortCycleGivesAreRoundedToPartsOf65536) {
  const SampleOrder order({1000, 1000, 1000}, {1.0, 1.41421356237, 3.14159265359}, true, 3);
  const double sum = 1.0 + 1.41421356237 + 3.14159265359;
  EXPECT_NEAR(order.share(0), 1.0 / sum, 2.0 / 65536);
  EXPECT_NEAR(order.share(2), 3.14159265359 / sum, 2.0 / 65536);
  EXPECT_DOUBLE_EQ(order.share(0) + order.share(1) + order.share(2), 1.0);
  // A prefix of hardly any weight is still seen.
  EXPECT_GT(SampleOrder({10, 10}, {1e-12, 1.0}, true, 3).share(0), 0.0);
}

TEST(SampleOrder, ABillionSamplesInAnyOrderCostNothingToKnow) {
  const std::vector<std::int64_t> sizes = {700000000, 1, 299999999};
  const SampleOrder order(sizes, {0.6, 0.1, 0.3}, true, 7), again(sizes, {0.6, 0.1, 0.3}, true, 7);
  const std::int64_t far = 3000000000;
  std::vector<std::int64_t> had(3, 0);
  for (std::int64_t n = far; n < far + 1000; ++n) {
    const auto [prefix, document] = place(order, sizes, n);
    ++had[prefix];
    EXPECT_LT(document, sizes[prefix]);
    EXPECT_EQ(again.document(n), order.document(n));
  }
  EXPECT_EQ(had, (std::vector<std::int64_t>{600, 100, 300}));
  // Sample 3e9 is sample 1.8e9 of its prefix: its third epoch.
  EXPECT_EQ(SampleOrder({100, 50}, {2.0, 1.0}, false, 7).document(far), 0);
  const SampleOrder joined(sizes, {}, true, 7);
  EXPECT_LT(joined.document(far * 1000), joined.size());
}

TEST(SampleOrder, WeightsThatCannotBeAreRefused) {
  expect_error(ErrorKind::kUsage, {"data.weights holds 2 numbers for the 3 prefixes"}, [] {
    SampleOrder(kSizes, {1.0, 2.0}, true, 1);
  });
  expect_error(ErrorKind::kUsage, {"data.weights holds 0", "above 0"}, [] {
    SampleOrder(kSizes, {1.0, 0.0, 1.0}, true, 1);
  });
  expect_error(ErrorKind::kData, {"prefix 1 of data.train", "no document"}, [] {
    SampleOrder({3, 0}, {1.0, 1.0}, true, 1);
  });
}

TEST(StepSamples, TheGeneralPartIsSpreadEvenlyAndLeavesNoSampleOut) {
  for (const auto& [batch, ratio] : {std::pair{8, 0.1}, {32, 0.25}, {1, 0.3}, {7, 1e-6}, {512, 0.999999}}) {
    std::int64_t domain = 0, general = 0;
    for (std::int64_t step = 0; step < 2000; ++step) {
      const StepSamples samples = step_samples(step, batch, ratio);
      EXPECT_EQ(samples.domain.begin, domain);
      EXPECT_EQ(samples.general.begin, general);
      EXPECT_EQ(samples.domain.size() + samples.general.size(), batch);
      domain = samples.domain.end;
      general = samples.general.end;
      const double wanted = ratio * static_cast<double>(batch) * static_cast<double>(step + 1);
      EXPECT_LT(std::abs(static_cast<double>(general) - wanted), 1.0 + 1e-6);
    }
  }
  const StepSamples none = step_samples(1000000000, 4096, 0.0);
  EXPECT_EQ(none.general.size(), 0);
  EXPECT_EQ(none.domain.begin, 4096000000000);
  EXPECT_EQ(step_samples(1000000000, 4096, 0.1).general.begin, 409600000000);
}

}  // namespace
}  // namespace reprise
