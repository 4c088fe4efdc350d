#include <gtest/gtest.h>

#include "tests/loss/head_loss_check.hpp"
#include "tests/support/mpi_test_main.hpp"

namespace reprise {
namespace {

template <class T>
void check_under_mpi(const HeadProblemOptions& options) {
  Communicator& world = mpi_test_world();
  for (const bool sequence_parallel : {false, true}) {
    for (const Normalization normalization : {Normalization::kToken, Normalization::kTile, Normalization::kFull}) {
      HeadProblemOptions chosen = options;
      if (normalization == Normalization::kToken) chosen.tile_tokens = 1;
      if (normalization == Normalization::kFull) chosen.negatives = 0;
      const HeadProblem problem = make_head_problem(chosen);
      check_head_loss<T>(world, problem, normalization, problem.even(world.size()), sequence_parallel);
    }
  }
}

TEST(HeadLossMpiTest, AgreesWithTheOracle) {
  check_under_mpi<float>({.negatives = 11, .loss = {.logit_scale = 0.75f, .softcap = 4.0f}});
  check_under_mpi<BFloat16>({.negatives = 11, .bfloat16 = true});
}

TEST(HeadLossMpiTest, ZeroTokensAndEmptyShards) {
  check_under_mpi<float>({.tokens = 0});
  check_under_mpi<float>({.vocab = 3, .padded_rows = 0, .candidates = 2});  // fewer ids than ranks at 4
}

}  // namespace
}  // namespace reprise
