#include "core/error.hpp"

#include <gtest/gtest.h>

#include "core/math.hpp"

namespace reprise {
namespace {

TEST(Error, CarriesItsExitCodeAndMessage) {
  try {
    fail(ErrorKind::kStoreMismatch, "vocabulary {} of the store, {} of the model", 8, 9);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kStoreMismatch);
    EXPECT_EQ(error.exit_code(), 4);
    EXPECT_STREQ(error.what(), "vocabulary 8 of the store, 9 of the model");
    return;
  }
  FAIL() << "nothing was thrown";
}

TEST(Error, RequireThrowsOnlyWhenTheConditionFails) {
  EXPECT_NO_THROW(require(true, ErrorKind::kUsage, "never"));
  EXPECT_THROW(require(false, ErrorKind::kUsage, "lr = {}", -1.0), Error);
}

TEST(Error, CheckNamesFileConditionAndValues) {
  const int rows = 3;
  try {
    REPRISE_CHECK(rows == 4, "{} rows", rows);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    EXPECT_NE(message.find("error_test.cpp:"), std::string::npos) << message;
    EXPECT_NE(message.find("rows == 4"), std::string::npos) << message;
    EXPECT_NE(message.find("3 rows"), std::string::npos) << message;
  }
}

TEST(Error, OutOfMemoryIsItsOwnTypeAndAnError) {
  try {
    throw OutOfMemory("gradients");
  } catch (const Error& error) {
    EXPECT_NE(dynamic_cast<const OutOfMemory*>(&error), nullptr);
  }
}

TEST(Math, DividesAndConvertsOnlyWithoutLoss) {
  EXPECT_EQ(ceil_div(0, 4), 0);
  EXPECT_EQ(ceil_div(9, 4), 3);
  EXPECT_EQ(round_up(9, 4), 12);
  EXPECT_EQ(div_exact(12, 4), 3);
  EXPECT_THROW(static_cast<void>(div_exact(13, 4)), Error);
  EXPECT_THROW(static_cast<void>(div_exact(13, 0)), Error);
  EXPECT_EQ(narrow<std::int32_t>(std::int64_t{1} << 30), 1 << 30);
  EXPECT_THROW(static_cast<void>(narrow<std::int32_t>(std::int64_t{1} << 31)), Error);
  EXPECT_THROW(static_cast<void>(narrow<std::uint8_t>(-1)), Error);
}

}  // namespace
}  // namespace reprise
