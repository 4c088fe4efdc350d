#include "launcher/metrics.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/file_io.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

std::vector<nlohmann::json> read_lines(const std::filesystem::path& path) {
  const std::string text = read_text_file(path, ErrorKind::kDisk);
  EXPECT_TRUE(text.ends_with('\n'));
  std::vector<nlohmann::json> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    lines.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

StepMetrics step_metrics(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 0.1 + 0.2;
  metrics.lr = 2e-5;
  metrics.tokens = 64;
  metrics.memory_bytes = std::int64_t{5} << 40;
  return metrics;
}

TEST(MetricsFile, AStepIsOneLineWithoutWhatWasNotMeasured) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  {
    MetricsFile file(path, 0);
    file.write(step_metrics(1));
    StepMetrics full = step_metrics(2);
    full.angles = AngleStatistics{.mean = 30.5, .max = 91.0, .quantiles = {1, 2, 3, 4, 5}, .clipped_share = 0.25};
    full.out_of_set_mass = 0.0625;
    file.write(full);
    file.write_evaluation(2, "data/test", 1.5, 0.75, 1000);
    EXPECT_EQ(file.bytes(), static_cast<std::int64_t>(std::filesystem::file_size(path)));
  }
  const auto lines = read_lines(path);
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[0].at("schema"), 1);
  EXPECT_EQ(lines[1].at("step"), 1);
  EXPECT_EQ(lines[1].at("loss").get<double>(), 0.1 + 0.2);
  EXPECT_EQ(lines[1].at("memory_bytes").get<std::int64_t>(), std::int64_t{5} << 40);
  EXPECT_FALSE(lines[1].contains("angle_mean"));
  EXPECT_FALSE(lines[1].contains("out_of_set_mass"));
  EXPECT_EQ(lines[2].at("angle_mean"), 30.5);
  EXPECT_EQ(lines[2].at("angle_quantiles").size(), 5U);
  EXPECT_EQ(lines[2].at("clipped_share"), 0.25);
  EXPECT_EQ(lines[2].at("out_of_set_mass"), 0.0625);
  EXPECT_EQ(lines[3].at("eval"), "data/test");
  EXPECT_EQ(lines[3].at("top1"), 0.75);
  EXPECT_EQ(lines[3].at("tokens"), 1000);
}

TEST(MetricsFile, WhatIsNotFiniteIsNull) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  MetricsFile file(path, 0);
  StepMetrics metrics = step_metrics(1);
  metrics.loss = std::numeric_limits<double>::quiet_NaN();
  metrics.grad_norm = std::numeric_limits<double>::infinity();
  metrics.skipped = true;
  file.write(metrics);
  const auto line = read_lines(path)[1];
  EXPECT_TRUE(line.at("loss").is_null());
  EXPECT_TRUE(line.at("grad_norm").is_null());
  EXPECT_EQ(line.at("skipped"), true);
}

TEST(MetricsFile, ResumingCutsWhatLiesBehindTheCheckpoint) {
  const TemporaryFolder folder;
  const auto path = folder / "metrics.jsonl";
  std::int64_t kept = 0;
  {
    MetricsFile file(path, 0);
    file.write(step_metrics(1));
    kept = file.bytes();
    file.write(step_metrics(2));
    file.write(step_metrics(3));
  }
  const std::string before = read_text_file(path, ErrorKind::kDisk);
  {
    MetricsFile file(path, kept);
    EXPECT_EQ(file.bytes(), kept);
    file.write(step_metrics(2));
    file.write(step_metrics(3));
  }
  EXPECT_EQ(read_text_file(path, ErrorKind::kDisk), before);
  EXPECT_EQ(MetricsFile(path, 0).bytes(), static_cast<std::int64_t>(before.find('\n') + 1));
}

TEST(MetricsFile, ALostFileIsBegunAgain) {
  const TemporaryFolder folder;
  MetricsFile file(folder / "metrics.jsonl", 5000);
  file.write(step_metrics(9));
  EXPECT_EQ(read_lines(folder / "metrics.jsonl").size(), 2U);
}

TEST(MetricsFile, AFileThatCannotBeWrittenIsADiskError) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kDisk, {"absent/metrics.jsonl", "run.folder"},
               [&] { const MetricsFile file(folder.path() / "absent" / "metrics.jsonl", 0); });
  expect_error(ErrorKind::kDisk, {"/dev/full", "cannot"}, [&] { const MetricsFile file("/dev/full", 0); });
}

}  // namespace
}  // namespace reprise
