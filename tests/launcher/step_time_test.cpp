#include "launcher/step_time.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "core/file_io.hpp"
#include "launcher/measured_steps.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

const std::filesystem::path kSource = REPRISE_SOURCE_DIR;

/// Llama 3.1 8B, one micro-batch of 8,192 tokens on one rank.
TimedStep llama_step() {
  TimedStep step;
  step.model = {
      .layers = 32, .hidden = 4096, .ffn = 14336, .heads = 32, .kv_heads = 8, .head_dim = 128, .vocab = 128256};
  step.tokens = 8192.0;
  step.pairs = 0.5 * 8192.0 * 8192.0;
  step.head = {.targets = 8192.0, .vocab_rows = 128256.0, .vocab = 128256.0, .hidden = 4096};
  step.attention_forward = step.attention_backward = 400e12;
  step.local_parameters = step.optimizer_parameters = 8.03e9;
  return step;
}

TEST(HardwareTable, HasEveryNameAndRefusesOthers) {
  for (const char* name : {"h100", "h200", "b200", "a100", "cpu"}) {
    const Hardware& hardware = find_hardware(name);
    EXPECT_GT(hardware.matrix_rate, 0.0) << name;
    EXPECT_GT(hardware.memory_bytes, 0.0) << name;
    EXPECT_FALSE(hardware.evidence.empty()) << name;
  }
  EXPECT_FALSE(find_hardware("b200").validated);  // never compared with a measured run
  expect_error(ErrorKind::kUsage, {"--hardware h800", "h100", "b200", "cpu"}, [] { (void)find_hardware("h800"); });
}

TEST(HardwareTable, RanksOfACpuShareItsCoresAndMemory) {
  const Hardware& machine = find_hardware("cpu");
  const Hardware both = rank_share(machine, 1, 2), one = rank_share(machine, 1, 1), half = rank_share(machine, 2, 1);
  EXPECT_DOUBLE_EQ(both.matrix_rate, machine.matrix_rate);
  EXPECT_DOUBLE_EQ(one.matrix_rate, machine.matrix_rate / 2.0);
  EXPECT_DOUBLE_EQ(half.matrix_rate, machine.matrix_rate / 2.0);
  EXPECT_GT(one.memory_rate, half.memory_rate);
  EXPECT_DOUBLE_EQ(half.memory_rate, machine.memory_rate / 2.0);
}

TEST(HardwareTable, ExchangesTakeTheLinksOfTheirRanks) {
  const Hardware& h = find_hardware("h100");
  EXPECT_EQ(exchange_seconds(h, 1.0, 1e9, 1, 1), 0.0);
  const double inside = exchange_seconds(h, 0.0, 1e9, 8, 1);
  EXPECT_NEAR(inside, 1e9 / (0.8 * 450e9), 1e-12);
  // One rank a node: its own card. All eight: eight cards together, 400 GB/s.
  EXPECT_NEAR(exchange_seconds(h, 0.0, 1e9, 16, 8), 1e9 / (0.8 * 50e9), 1e-12);
  EXPECT_NEAR(exchange_seconds(h, 0.0, 1e9, 64, 1), 1e9 / (0.8 * 400e9), 1e-12);
  EXPECT_GT(exchange_seconds(h, 1.0, 0.0, 1024, 1), exchange_seconds(h, 1.0, 0.0, 16, 1));
}

TEST(ProductSeconds, LargeProductsReachTheShareAndOthersLose) {
  const Hardware& h = find_hardware("h100");
  const auto share = [&](double m, double n, double k) {
    return 2.0 * m * n * k / product_seconds(h, m, n, k, 2) / (h.matrix_share * h.matrix_rate);
  };
  EXPECT_GT(share(16384, 16384, 16384), 0.95);
  EXPECT_LE(share(16384, 16384, 16384), 1.0);
  EXPECT_LT(share(8192, 8192, 256), 0.62);       // the ramp along k
  EXPECT_LT(share(129, 129, 8192), 0.05);        // a few tiles on 132 multiprocessors
  EXPECT_LT(share(16, 128256, 4096), 0.15);      // reads 1 GB of weights
  EXPECT_LT(share(133 * 128, 256, 8192), 0.80);  // one tile too many: a second wave
  EXPECT_GT(product_seconds(h, 4096, 4096, 256, 2, true), product_seconds(h, 4096, 4096, 256, 2));
  EXPECT_GT(product_seconds(h, 4096, 4096, 4096, 4), 5.0 * product_seconds(h, 4096, 4096, 4096, 2));
}

TEST(StepTime, IsTheSumOfPartsThatFollowTheArithmetic) {
  const Hardware& h = find_hardware("h100");
  const TimedStep step = llama_step();
  const StepTime time = estimate_step_time(h, step);
  // 6 FLOP a parameter and token, at most a tenth slower than the share of the peak.
  const double least = 6.0 * step.model.layer_parameters() * step.tokens / (h.matrix_share * h.matrix_rate);
  EXPECT_NEAR(step.model.layer_parameters(), 6.98e9, 0.01e9);
  EXPECT_GT(time.products, least);
  EXPECT_LT(time.products, 1.12 * least);
  // 4 FLOP a head dimension, head and pair forward, 10 backward.
  EXPECT_NEAR(time.attention, 32.0 * 14.0 * 4096.0 * step.pairs / 400e12, 1e-9);
  EXPECT_NEAR(time.model_flops,
              6.0 * 8192.0 * (step.model.layer_parameters() + 128256.0 * 4096.0) + 12.0 * 32.0 * 4096.0 * step.pairs,
              1e9);
  EXPECT_EQ(time.tensor_exposed + time.data_exposed + time.recompute + time.bubble, 0.0);
  EXPECT_NEAR(time.total(), time.products + time.attention + time.passes + time.head + time.optimizer, 1e-12);
}

TEST(StepTime, RecomputationAddsWhatItMakesAgain) {
  const Hardware& h = find_hardware("h100");
  TimedStep step = llama_step();
  const double forward = forward_seconds(h, step);
  step.recompute = TimedRecompute::kLayer;
  EXPECT_NEAR(estimate_step_time(h, step).recompute, forward, 1e-9);
  step.recompute = TimedRecompute::kSelective;
  EXPECT_NEAR(estimate_step_time(h, step).recompute, 32.0 * 4.0 * 4096.0 * step.pairs / 400e12, 1e-9);
}

TEST(StepTime, DataExchangesHideBehindBackwardAndTensorOnesDoNot) {
  const Hardware& h = find_hardware("h100");
  TimedStep step = llama_step();
  step.gradients = {10.0, 4.0 * 8e9, 8, 1};
  step.parameters = {10.0, 2.0 * 8e9, 8, 1};
  step.tensor_exchanges = {{100.0, 10e9, 8, 1}};
  const StepTime hidden = estimate_step_time(h, step);
  EXPECT_LT(hidden.data_exposed, 0.4 * hidden.data_all);
  EXPECT_DOUBLE_EQ(hidden.tensor_exposed, hidden.tensor_all);
  step.gradient_passes = 4.0;  // ZeRO 2: three of four reductions are waited for
  EXPECT_GT(estimate_step_time(h, step).data_exposed, hidden.data_exposed);
  step.gradient_passes = 1.0;
  step.data_overlapped = false;
  EXPECT_DOUBLE_EQ(estimate_step_time(h, step).data_exposed, hidden.data_all);
  step.gradients.stride = 8;  // one rank a node: too slow to hide
  step.gradients.ranks = 64;
  step.data_overlapped = true;
  EXPECT_GT(estimate_step_time(h, step).data_exposed, 0.25 * estimate_step_time(h, step).data_all);
}

TEST(HeadTime, UnionsGrowSlowerThanTheirTokens) {
  TimedHead head{.vocab = 128256.0, .set_size = 100.0};
  EXPECT_DOUBLE_EQ(union_size(head, 1.0), 100.0);
  EXPECT_NEAR(union_size(head, 8.0), 440.0, 5.0);
  EXPECT_NEAR(union_size(head, 64.0), 1900.0, 20.0);
  EXPECT_NEAR(union_size(head, 8192.0), 38800.0, 1500.0);
  for (double n = 1.0; n < 1e5; n *= 2.0) EXPECT_GT(union_size(head, 2.0 * n), union_size(head, n)) << n;
  head.uniform_sets = true;
  EXPECT_NEAR(union_size(head, 8.0), 798.0, 3.0);
  EXPECT_LT(union_size(head, 1e6), 128256.1);
}

TEST(HeadTime, RestrictedHeadsFollowTheBytesOfTheKernelsPage) {
  const Hardware& h = find_hardware("h100");
  TimedHead head{
      .targets = 4096.0, .vocab_rows = 128256.0, .vocab = 128256.0, .hidden = 4096, .products = 3.0, .set_size = 100.0};
  // Three products of 2 x 4096 x 128,256 x 4,096 FLOP.
  const double products = 3.0 * 2.0 * 4096.0 * 128256.0 * 4096.0 / (h.matrix_share * h.matrix_rate);
  const double full = head_seconds(h, head);
  EXPECT_GT(full, products);
  EXPECT_LT(full, 1.35 * products);
  // docs/kernels.md: 0.34 ms forward, 0.35 + 0.08 ms of d_weight with 32,000 rows; 0.7 of it is expected.
  head.kind = TimedHead::Kind::kTile;
  head.tile_tokens = 8;
  EXPECT_NEAR(head_seconds(h, head), 0.77e-3 / 0.7, 0.2e-3);
  EXPECT_GT(full / head_seconds(h, head), 8.0);
  head.kind = TimedHead::Kind::kToken;
  EXPECT_GT(full / head_seconds(h, head), 8.0);
  head.targets = 0.0;
  EXPECT_EQ(head_seconds(h, head), 0.0);
}

// ---- beside measured steps -----------------------------------------------------------------------------------------

int near_rows(const MeasuredSteps& steps, double limit, bool blind) {
  int count = 0;
  for (const MeasuredStep& row : steps.rows) {
    if (blind && !row.fitted.empty()) continue;
    count += std::abs(row.error()) <= limit ? 1 : 0;
  }
  return count;
}

TEST(MeasuredSteps, PublishedRunsArePredicted) {
  const MeasuredSteps steps = read_measured_steps(kSource / "configs" / "scaling" / "published.json");
  std::set<std::string> sources, hardware;
  int fitted = 0;
  for (const MeasuredStep& row : steps.rows) {
    sources.insert(row.source);
    hardware.insert(row.hardware);
    fitted += row.fitted.empty() ? 0 : 1;
    EXPECT_LT(std::abs(row.error()), 0.45) << row.source << ": " << row.name;
    if (!row.fitted.empty()) {
      EXPECT_LT(std::abs(row.error()), 0.05) << row.name;
    }
  }
  EXPECT_GE(sources.size(), 5U);
  EXPECT_TRUE(hardware.contains("h100") && hardware.contains("a100"));
  EXPECT_EQ(fitted, 4);
  EXPECT_GE(steps.rows.size(), 140U);
  const auto blind = static_cast<double>(steps.rows.size() - 4);
  EXPECT_GE(near_rows(steps, 0.2, true), 0.85 * blind);
}

TEST(MeasuredSteps, OurOwnCpuStepsArePredicted) {
  const MeasuredSteps steps = read_measured_steps(kSource / "configs" / "scaling" / "cpu_steps.json");
  EXPECT_GE(near_rows(steps, 0.2, true), static_cast<int>(0.9 * static_cast<double>(steps.rows.size())));
  for (const MeasuredStep& row : steps.rows) EXPECT_LT(std::abs(row.error()), 0.3) << row.name;
}

TEST(MeasuredSteps, TheDocumentsHaveTheProgramsTables) {
  std::ifstream file(kSource / "docs" / "scaling.md");
  const std::string page((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  for (const char* name : {"published.json", "cpu_steps.json"}) {
    const std::string table = measured_steps_table(read_measured_steps(kSource / "configs" / "scaling" / name));
    EXPECT_NE(page.find(table), std::string::npos) << "docs/scaling.md must have\n" << table;
  }
}

TEST(MeasuredSteps, WrongFilesAreNamed) {
  TemporaryFolder folder;
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    write_file_atomically(folder / "rows.json", text);
    expect_error(ErrorKind::kUsage, parts, [&] { (void)read_measured_steps(folder / "rows.json"); });
  };
  refused("{}", {"rows.json", "sources"});
  refused(R"({"sources": {}, "rows": [{"hardware": "h100"}]})", {"row 1", "software"});
  refused(R"({"sources": {}, "rows": [{"hardware": "abacus", "software": "x"}]})", {"abacus"});
  refused(R"({"sources": {}, "software": {"x": {}}, "rows": [{"hardware": "h100", "software": "x", "gpus": 0.5}]})",
          {"row 1", "gpus", "integer"});
}

}  // namespace
}  // namespace reprise
