#include "core/parameter.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.hpp"

namespace reprise {
namespace {

ParameterSpec make_spec(const std::string& name, std::int64_t rows, std::int64_t cols, bool sum_over_tp = false) {
  ParameterSpec spec;
  spec.name = name;
  spec.global_rows = spec.row_end = rows;
  spec.global_cols = spec.col_end = cols;
  spec.sum_over_tp = sum_over_tp;
  return spec;
}

/// What must hold of every layout: buckets tile the buffer, slots lie in one bucket each, nothing overlaps.
void expect_sound(const FlatLayout& layout, const std::vector<ParameterSpec>& specs, std::int64_t shard_count) {
  std::int64_t next = 0;
  for (const Bucket& bucket : layout.buckets) {
    EXPECT_EQ(bucket.begin, next);
    EXPECT_GT(bucket.end, bucket.begin);
    EXPECT_EQ((bucket.end - bucket.begin) % (16 * shard_count), 0);
    next = bucket.end;
  }
  EXPECT_EQ(layout.size, next);
  ASSERT_EQ(layout.slots.size(), specs.size());
  std::vector<ParameterSlot> ordered = layout.slots;
  std::sort(ordered.begin(), ordered.end(),
            [](auto a, auto b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  for (std::size_t i = 1; i < ordered.size(); ++i) EXPECT_LE(ordered[i - 1].end, ordered[i].begin);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const ParameterSlot slot = layout.slots[i];
    EXPECT_EQ(slot.begin % 16, 0);
    EXPECT_EQ(slot.end - slot.begin, specs[i].size());
    if (specs[i].size() == 0) continue;
    const auto holds = [&](const Bucket& bucket) {
      return bucket.begin <= slot.begin && slot.end <= bucket.end && bucket.sum_over_tp == specs[i].sum_over_tp;
    };
    EXPECT_EQ(std::count_if(layout.buckets.begin(), layout.buckets.end(), holds), 1) << specs[i].name;
  }
}

TEST(FlatLayout, IsSoundForEverySplit) {
  const std::vector<ParameterSpec> specs = {
      make_spec("embedding", 50, 7),   make_spec("norm", 7, 1, true), make_spec("q", 7, 7),   make_spec("k", 0, 7),
      make_spec("k_bias", 3, 1, true), make_spec("head", 50, 7),      make_spec("last", 1, 1)};
  for (const std::int64_t bucket_elements : {1, 64, 400, 1'000'000}) {
    for (const std::int64_t shards : {1, 2, 3, 8}) {
      SCOPED_TRACE(::testing::Message() << bucket_elements << " elements, " << shards << " shards");
      expect_sound(make_flat_layout(specs, bucket_elements, shards), specs, shards);
    }
  }
}

TEST(FlatLayout, KeepsDeclarationOrderAndPutsSummedCopiesLast) {
  const std::vector<ParameterSpec> specs = {make_spec("a", 3, 1, true), make_spec("b", 17, 1), make_spec("c", 16, 1),
                                            make_spec("d", 5, 1, true)};
  const FlatLayout layout = make_flat_layout(specs, 1'000, 2);
  EXPECT_EQ(layout.slots[1].begin, 0);
  EXPECT_EQ(layout.slots[2].begin, 32);
  EXPECT_EQ(layout.slots[0].begin, 64);  // 48 elements, padded to two shards of 32
  EXPECT_EQ(layout.slots[3].begin, 80);
  ASSERT_EQ(layout.buckets.size(), 2U);
  EXPECT_FALSE(layout.buckets[0].sum_over_tp);
  EXPECT_TRUE(layout.buckets[1].sum_over_tp);
  EXPECT_EQ(layout.size, 96);
}

TEST(FlatLayout, ABucketClosesOnceItIsFull) {
  std::vector<ParameterSpec> specs;
  for (int i = 0; i < 10; ++i) specs.push_back(make_spec(fmt::format("p{}", i), 16, 1));
  EXPECT_EQ(make_flat_layout(specs, 48, 1).buckets.size(), 4U);
  EXPECT_EQ(make_flat_layout(specs, 1, 1).buckets.size(), 10U);
  EXPECT_EQ(make_flat_layout(specs, 1'000, 1).buckets.size(), 1U);
  EXPECT_EQ(make_flat_layout({}, 1'000, 4).size, 0);
  EXPECT_THROW(static_cast<void>(make_flat_layout(specs, 0, 1)), Error);
}

TEST(FlatLayout, NoBucketEndsBetweenWhatIsMultipliedAsOne) {
  std::vector<ParameterSpec> specs;
  for (const char* name : {"q", "k", "v", "gate", "up"}) specs.push_back(make_spec(name, 16, 1));
  for (const std::size_t i : {0U, 1U, 3U}) specs[i].joins_next = true;
  const FlatLayout layout = make_flat_layout(specs, 1, 2);
  ASSERT_EQ(layout.buckets.size(), 2U);
  EXPECT_EQ(layout.buckets[0].end, 64);  // 48 elements, padded to two shards of 32
  for (const std::size_t i : {0U, 1U, 3U}) EXPECT_EQ(layout.slots[i].end, layout.slots[i + 1].begin);
  expect_sound(layout, specs, 2);
}

template <class T>
class ParameterSetTest : public ::testing::Test {};
using Types = ::testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(ParameterSetTest, Types);

TYPED_TEST(ParameterSetTest, HandsOutZeroedBlocksOfOneBuffer) {
  const Stream stream(CpuStream{});
  ParameterSet<TypeParam> parameters;
  ParameterSpec shard = make_spec("w", 10, 6);
  shard.row_begin = 4;
  shard.row_end = 7;
  EXPECT_EQ(parameters.add(shard), 0);
  EXPECT_EQ(parameters.add(make_spec("norm", 6, 1, true)), 1);
  EXPECT_FALSE(parameters.has_gradients());
  parameters.allocate(stream, 1'000, 2);
  EXPECT_TRUE(parameters.has_gradients());
  EXPECT_EQ(parameters.find("norm"), 1);
  EXPECT_EQ(parameters.find("missing"), -1);
  EXPECT_EQ(parameters.value(0).rows, 3);
  EXPECT_EQ(parameters.value(0).cols, 6);
  EXPECT_EQ(parameters.values().size, parameters.layout().size);
  for (const float gradient : parameters.gradients()) EXPECT_EQ(gradient, 0.0f);
  parameters.value(1)(5, 0) = TypeParam(2.0f);
  EXPECT_EQ(static_cast<float>(parameters.values()[parameters.layout().slots[1].begin + 5]), 2.0f);
  parameters.gradient(0)(2, 5) = 1.0f;
  parameters.gradient(1)(0, 0) = 1.0f;
  parameters.discard_gradients(parameters.layout().buckets[0].begin, parameters.layout().buckets[0].end);
  EXPECT_EQ(parameters.gradient(0)(2, 5), 0.0f);
  EXPECT_EQ(parameters.gradient(1)(0, 0), 1.0f);
}

TYPED_TEST(ParameterSetTest, RefusesMistakes) {
  const Stream stream(CpuStream{});
  ParameterSet<TypeParam> parameters;
  static_cast<void>(parameters.add(make_spec("w", 2, 2)));
  EXPECT_THROW(static_cast<void>(parameters.add(make_spec("w", 2, 2))), Error);
  ParameterSpec outside = make_spec("outside", 2, 2);
  outside.row_end = 3;
  EXPECT_THROW(static_cast<void>(parameters.add(outside)), Error);
  parameters.allocate(stream, 1'000, 1, /*values_only=*/true);
  EXPECT_THROW(static_cast<void>(parameters.gradient(0)), Error);
  EXPECT_THROW(static_cast<void>(parameters.add(make_spec("late", 2, 2))), Error);
  EXPECT_THROW(parameters.allocate(stream, 1'000, 1), Error);
  EXPECT_THROW(parameters.discard_gradients(0, 16), Error);
}

}  // namespace
}  // namespace reprise
