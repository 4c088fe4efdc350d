#include "launcher/collection_report.hpp"

#include <gtest/gtest.h>

#include "parallel/thread_communicator.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

/// 90 sets of 3 ids and 10 of 20, k_max 20.
CollectStatistics some_statistics() {
  CollectStatistics statistics;
  statistics.samples = 7;
  statistics.tokens = 100;
  statistics.ids = 90 * 3 + 10 * 20;
  statistics.gold_outside = 8;
  statistics.at_k_max = 10;
  statistics.mass = 90.0;
  statistics.set_size.assign(21, 0);
  statistics.set_size[3] = 90;
  statistics.set_size[20] = 10;
  statistics.bucket = {10, 0, 0, 0, 90};
  return statistics;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CollectionReport, SaysSizesMassGoldsBytesAndWhatTheyMean) {
  TopKOptions options;
  options.k_max = 20;
  const std::string report = collection_report(some_statistics(), options, 1000, 4000);
  for (const char* part :
       {"100 positions of 7 samples", "median 50 % 3", "95 % 20", "90.00 % on average", "8.00 %",
        "40.0 bytes a position", "2.000 % of its 1,000", "warning: for 8.0 % of the positions",
        "10.0 % of the sets are cut at replay.k_max = 20", "cover 90.0 % on average, 95.0 % were asked for"}) {
    EXPECT_TRUE(contains(report, part)) << part << " is not in\n" << report;
  }
  CollectStatistics good = some_statistics();
  good.gold_outside = 1;
  good.at_k_max = 0;
  good.mass = 96.0;
  EXPECT_FALSE(contains(collection_report(good, options, 1000, 4000), "warning"));
  EXPECT_FALSE(contains(collection_report(good, options, 1000, 4000), "note"));
  EXPECT_TRUE(contains(collection_report({}, options, 1000, 0), "0 positions"));
}

TEST(CollectionReport, QuantilesAreTheSmallestSizesThatReachTheShare) {
  const CollectStatistics statistics = some_statistics();
  EXPECT_EQ(set_size_quantile(statistics, 0.0), 3);
  EXPECT_EQ(set_size_quantile(statistics, 0.9), 3);
  EXPECT_EQ(set_size_quantile(statistics, 0.91), 20);
  EXPECT_EQ(set_size_quantile({}, 0.5), 0);
}

TEST(CollectionReport, JsonKeepsEverythingAndRefusesWhatIsNotIt) {
  const CollectStatistics before = some_statistics();
  const CollectStatistics after = statistics_from_json(statistics_to_json(before), "text");
  EXPECT_EQ(after.samples, before.samples);
  EXPECT_EQ(after.tokens, before.tokens);
  EXPECT_EQ(after.ids, before.ids);
  EXPECT_EQ(after.gold_outside, before.gold_outside);
  EXPECT_EQ(after.at_k_max, before.at_k_max);
  EXPECT_EQ(after.mass, before.mass);
  EXPECT_EQ(after.set_size, before.set_size);
  EXPECT_EQ(after.bucket, before.bucket);
  for (const char* text : {"", "{}", "[1]", R"({"samples": "x"})"}) {
    expect_error(ErrorKind::kData, {"here"}, [&] { (void)statistics_from_json(text, "here"); });
  }
}

TEST(CollectionReport, RanksAddUp) {
  run_ranks(3, [](Communicator& world) {
    CollectStatistics own;
    if (world.rank() > 0) own = some_statistics();
    const CollectStatistics all = reduce_statistics(world, Stream(CpuStream{}), own, 20);
    EXPECT_EQ(all.samples, 14);
    EXPECT_EQ(all.tokens, 200);
    EXPECT_EQ(all.gold_outside, 16);
    EXPECT_EQ(all.mass, 180.0);
    EXPECT_EQ(all.set_size[3], 180);
    EXPECT_EQ(all.bucket[4], 180);
  });
}

}  // namespace
}  // namespace reprise
