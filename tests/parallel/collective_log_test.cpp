#include "parallel/collective_log.hpp"

#include <gtest/gtest.h>

namespace reprise {

namespace {

TEST(CollectiveLog, WritesTheLastOnesWithTheirState) {
  CollectiveLog log("tp", 1, 4, 3);
  EXPECT_EQ(log.text(0, 0), "");
  EXPECT_EQ(log.add(Collective::kAllReduce, 8, DType::kFloat32, 0.25), 1u);
  EXPECT_EQ(log.text(1, 1),
            "group=tp rank=1/4 collective=1 verb=all_reduce count=8 dtype=float32 state=done asked_at=0.250\n");
  log.add(Collective::kAllGather, 16, DType::kBFloat16, 0.5);
  log.add(Collective::kAllToAll, 0, DType::kInt64, 1.0);
  EXPECT_EQ(log.add(Collective::kBroadcast, 9, DType::kUInt8, 2.0), 4u);  // the first is forgotten
  EXPECT_EQ(log.text(2, 3),
            "group=tp rank=1/4 collective=2 verb=all_gather count=16 dtype=bfloat16 state=done asked_at=0.500\n"
            "group=tp rank=1/4 collective=3 verb=all_to_all count=0 dtype=int64 state=queued asked_at=1.000\n"
            "group=tp rank=1/4 collective=4 verb=broadcast count=9 dtype=uint8 state=asked asked_at=2.000\n");
}

TEST(CollectiveLog, DescribesOne) {
  CollectiveLog log("dp", 0, 2, 2);
  for (int i = 1; i <= 5; ++i) log.add(Collective::kReduceScatter, 100 * i, DType::kFloat64, 0.0);
  EXPECT_EQ(log.describe(5), "reduce_scatter (collective 5, 500 elements of float64)");
  EXPECT_EQ(log.describe(2), "collective 2");
  EXPECT_EQ(log.last(), 5u);
}

}  // namespace

}  // namespace reprise
