#include <gtest/gtest.h>

#include <tuple>

#include "tests/launcher/overlap_run.hpp"

namespace reprise {
namespace {

class OverlapTest : public testing::TestWithParam<std::tuple<int, int, bool, bool>> {};

// On a CPU and with staged transport in line; the order of collectives is the overlapped one all the same.
TEST_P(OverlapTest, ChangesNoBit) {
  const auto [zero_stage, tensor, sequence_parallel, tied] = GetParam();
  OverlapFixture fixture;
  if (tied) {
    fixture.model.tie_word_embeddings = true;
    make_model_folder(fixture.folder / "model", fixture.model);
  }
  fixture.config.optimizer.zero_stage = zero_stage;
  fixture.config.parallel.sequence_parallel = sequence_parallel;
  const auto apart = run_with_traffic<float>(fixture.config, {tensor, 2, false}, 3);
  const auto together = run_with_traffic<float>(fixture.config, {tensor, 2, true}, 3);
  for (std::size_t r = 0; r < apart.size(); ++r) EXPECT_TRUE(together[r] == apart[r]) << "rank " << r;
  EXPECT_EQ(apart[0].metrics[3], 0.0) << "no step is skipped";
}

INSTANTIATE_TEST_SUITE_P(Layouts, OverlapTest,
                         testing::Values(std::tuple{0, 1, false, false}, std::tuple{1, 2, true, false},
                                         std::tuple{1, 1, false, true}, std::tuple{2, 2, false, false},
                                         std::tuple{2, 2, true, true}),
                         [](const auto& layout) {
                           return fmt::format("Zero{}Tensor{}{}{}", std::get<0>(layout.param),
                                              std::get<1>(layout.param),
                                              std::get<2>(layout.param) ? "SequenceParallel" : "",
                                              std::get<3>(layout.param) ? "Tied" : "");
                         });

}  // namespace
}  // namespace reprise
