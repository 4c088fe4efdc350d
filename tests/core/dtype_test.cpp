#include "core/dtype.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace reprise {
namespace {

float from_bits(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

TEST(BFloat16, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(BFloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(BFloat16(from_bits(0x3f808000)).bits, 0x3f80);  // tie: 0x3f80 is even
  EXPECT_EQ(BFloat16(from_bits(0x3f818000)).bits, 0x3f82);  // tie: 0x3f81 is odd
  EXPECT_EQ(BFloat16(from_bits(0x3f808001)).bits, 0x3f81);
  EXPECT_EQ(BFloat16(from_bits(0x3f80ffff)).bits, 0x3f81);
  EXPECT_EQ(BFloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(BFloat16(from_bits(0x00000001)).bits, 0x0000);  // below half of the smallest subnormal
}

TEST(BFloat16, OverflowsToInfinityAndKeepsNaN) {
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(BFloat16(-std::numeric_limits<float>::infinity()).bits, 0xff80);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(from_bits(0x7f800001)))));  // payload in the dropped half
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(from_bits(0xffffffff)))));
}

TEST(BFloat16, EveryValueSurvivesTheWayThroughFloat) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    BFloat16 value;
    value.bits = static_cast<std::uint16_t>(bits);
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(wide))));
    } else {
      ASSERT_EQ(BFloat16(wide).bits, bits);
    }
  }
}

TEST(BFloat16, ComparesAsNumbers) {
  EXPECT_TRUE(BFloat16(0.0f) == BFloat16(-0.0f));
  EXPECT_FALSE(BFloat16(std::nanf("")) == BFloat16(std::nanf("")));
}

TEST(DType, NamesAndSizesBelongTogether) {
  EXPECT_EQ(size_of(dtype_of<BFloat16>), sizeof(BFloat16));
  EXPECT_EQ(size_of(dtype_of<float>), 4U);
  EXPECT_EQ(size_of(dtype_of<std::uint64_t>), 8U);
  EXPECT_EQ(size_of(dtype_of<std::uint8_t>), 1U);
  EXPECT_EQ(name_of(dtype_of<BFloat16>), "bfloat16");
  EXPECT_EQ(name_of(dtype_of<std::int32_t>), "int32");
}

}  // namespace
}  // namespace reprise
