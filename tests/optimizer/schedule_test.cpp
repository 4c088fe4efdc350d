#include "optimizer/schedule.hpp"

#include <gtest/gtest.h>

#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

std::vector<double> rates(const ScheduleOptions& options, std::int64_t steps) {
  std::vector<double> result;
  for (std::int64_t step = 0; step < steps; ++step) result.push_back(learning_rate(options, step));
  return result;
}

void expect_rates(const ScheduleOptions& options, const std::vector<double>& expected) {
  const auto found = rates(options, static_cast<std::int64_t>(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-12) << "step " << i;
}

TEST(Schedule, LinearFallsInEqualStepsToTheFloorAtTheLastStep) {
  expect_rates({.lr = 1.0, .warmup_steps = 0, .total_steps = 5, .decay = Decay::kLinear, .min_lr_ratio = 0.2},
               {1.0, 0.8, 0.6, 0.4, 0.2, 0.2});
}

TEST(Schedule, WarmUpRisesInEqualStepsToTheFullRate) {
  expect_rates({.lr = 4.0, .warmup_steps = 4, .total_steps = 7, .decay = Decay::kLinear, .min_lr_ratio = 0.5},
               {1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0});
}

TEST(Schedule, CosineIsHalfWayAtTheMiddle) {
  // 0.1 + 0.9 (1 + cos(pi p)) / 2 with p = 0, 1/4, 1/2, 3/4, 1
  expect_rates({.lr = 1.0, .warmup_steps = 0, .total_steps = 5, .decay = Decay::kCosine, .min_lr_ratio = 0.1},
               {1.0, 0.86819805153394639, 0.55, 0.23180194846605365, 0.1});
}

TEST(Schedule, ConstantStaysAfterItsWarmUp) {
  expect_rates({.lr = 2.0, .warmup_steps = 2, .total_steps = 4, .decay = Decay::kConstant, .min_lr_ratio = 0.0},
               {1.0, 2.0, 2.0, 2.0, 2.0});
}

TEST(Schedule, ShortRunsHaveNoDivisionByZero) {
  expect_rates({.lr = 1.0, .warmup_steps = 0, .total_steps = 1, .decay = Decay::kCosine, .min_lr_ratio = 0.1}, {1.0});
  expect_rates({.lr = 1.0, .warmup_steps = 3, .total_steps = 3, .decay = Decay::kLinear, .min_lr_ratio = 0.0},
               {1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0});
  expect_rates({.lr = 1.0, .warmup_steps = 8, .total_steps = 2, .decay = Decay::kLinear, .min_lr_ratio = 0.0},
               {0.125, 0.25});
}

TEST(Schedule, NamesAndErrors) {
  EXPECT_EQ(parse_decay("cosine"), Decay::kCosine);
  EXPECT_EQ(parse_decay("linear"), Decay::kLinear);
  EXPECT_EQ(parse_decay("constant"), Decay::kConstant);
  expect_error(ErrorKind::kUsage, {"schedule.decay", "exponential", "cosine", "linear", "constant"},
               [] { (void)parse_decay("exponential"); });
  expect_error(ErrorKind::kUsage, {"optimizer.lr", "-1"}, [] { (void)learning_rate({.lr = -1.0}, 0); });
  expect_error(ErrorKind::kUsage, {"schedule.warmup_steps"}, [] { (void)learning_rate({.warmup_steps = -1}, 0); });
  expect_error(ErrorKind::kUsage, {"schedule.min_lr_ratio", "[0, 1]"},
               [] { (void)learning_rate({.min_lr_ratio = 1.5}, 0); });
}

}  // namespace

}  // namespace reprise
