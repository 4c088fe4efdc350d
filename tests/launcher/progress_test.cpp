#include "launcher/progress.hpp"

#include <gtest/gtest.h>

#include "launcher/edit_distance.hpp"
#include "launcher/text_table.hpp"

namespace reprise {
namespace {

/// What a progress of 3 steps prints where there is no terminal.
std::string printed(bool silent, double seconds_between_lines) {
  testing::internal::CaptureStderr();
  Progress progress("train", 3, silent, seconds_between_lines);
  for (int step = 1; step <= 3; ++step) progress.update(step, "loss " + std::to_string(step));
  progress.print("a line of its own");
  progress.finish();
  progress.finish();
  return testing::internal::GetCapturedStderr();
}

TEST(Progress, WithoutATerminalItIsPlainLinesNowAndThen) {
  const std::string text = printed(false, 3600.0);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;  // the first, the line, the end
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_NE(text.find("train   33 %  1/3"), std::string::npos) << text;
  EXPECT_NE(text.find("a line of its own\n"), std::string::npos) << text;
  EXPECT_NE(text.find("100 %  3/3"), std::string::npos) << text;
  EXPECT_NE(text.find("loss 3"), std::string::npos) << text;
}

TEST(Progress, EveryUpdateIsALineWithoutAPause) {
  const std::string text = printed(false, 0.0);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5) << text;
}

TEST(Progress, ASilentOneSaysNothing) {
  EXPECT_EQ(printed(true, 0.0), "");
}

TEST(Progress, NothingToDoIsAllDone) {
  testing::internal::CaptureStderr();
  Progress progress("empty", 0, false);
  progress.finish();
  EXPECT_NE(testing::internal::GetCapturedStderr().find("100 %  0/0"), std::string::npos);
}

TEST(Format, BytesSecondsAndCounts) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.0 KiB");
  EXPECT_EQ(format_bytes(1536 << 10), "1.5 MiB");
  EXPECT_EQ(format_bytes(std::int64_t{80} << 30), "80.0 GiB");
  EXPECT_EQ(format_bytes(std::int64_t{500} << 30), "500 GiB");
  EXPECT_EQ(format_seconds(0.0012), "1.2 ms");
  EXPECT_EQ(format_seconds(0.012), "12 ms");
  EXPECT_EQ(format_seconds(1.26), "1.3 s");
  EXPECT_EQ(format_seconds(42.0), "42 s");
  EXPECT_EQ(format_seconds(60.0 * 12 + 5), "12 min 05 s");
  EXPECT_EQ(format_seconds(3600.0 * 5 + 60 * 7), "5 h 07 min");
  EXPECT_EQ(format_seconds(86400.0 * 3 + 3600 * 4), "3 d 04 h");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-1234), "-1,234");
}

TEST(TextTable, ColumnsAreAsWideAsTheirCells) {
  TextTable table("lr");
  table.add({"a", "1"});
  table.add({"long", "1,000"});
  table.add_rule();
  table.add({"", "5"});
  EXPECT_EQ(table.text(), "  a         1\n  long  1,000\n  -----------\n            5\n");
}

TEST(TextTable, TextIsBrokenBetweenWords) {
  EXPECT_EQ(wrapped("one two three", 7, 2), "one two\n  three");
  EXPECT_EQ(wrapped("one two", 80, 2), "one two");
  EXPECT_EQ(wrapped("averylongword that", 6, 1), "averylongword\n that");
}

TEST(EditDistance, CountsSlipsOfTheHand) {
  EXPECT_EQ(edit_distance("train", "train"), 0U);
  EXPECT_EQ(edit_distance("trian", "train"), 1U);
  EXPECT_EQ(edit_distance("tran", "train"), 1U);
  EXPECT_EQ(edit_distance("traiin", "train"), 1U);
  EXPECT_EQ(edit_distance("drain", "train"), 1U);
  EXPECT_EQ(edit_distance("", "train"), 5U);
  EXPECT_EQ(edit_distance("abc", "xyz"), 3U);
}

}  // namespace
}  // namespace reprise
