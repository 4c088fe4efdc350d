#include "optimizer/ownership.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "optimizer/optimizer.hpp"
#include "tests/optimizer/toy_model.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

using Edit = std::function<void(int tp_rank, int dp_rank, std::vector<ParameterSpec>& specs)>;

constexpr std::size_t kQ = 2, kHeads = 3, kBias = 5;  // of toy_tensors()

/// Builds an optimizer on 4 x 2 ranks after `edit` has spoilt some rank's declarations; every rank must throw.
void expect_refusal(const std::vector<std::string>& parts, const Edit& edit, std::int64_t shard_count = 2) {
  std::vector<int> threw(8, 0);
  expect_error(ErrorKind::kInternal, parts, [&] {
    run_device_ranks(8, [&](Communicator& world) {
      const ProcessGroups groups = ProcessGroups::make(world, 4);
      const Stream& stream = test_stream();
      Arena arena(stream);
      const Context context{stream, groups, arena};
      auto specs = toy_specs(4, groups.tp_rank());
      edit(groups.tp_rank(), groups.dp_rank(), specs);
      ParameterSet<float> parameters;
      for (const ParameterSpec& spec : specs) parameters.add(spec);
      parameters.allocate(stream, 100, shard_count);
      try {
        (void)make_optimizer(context, {}, parameters);
      } catch (const Error&) {
        threw[static_cast<std::size_t>(world.rank())] = 1;
        world.barrier();  // nobody left the others waiting
        throw;
      }
    });
  });
  for (const int rank : threw) EXPECT_EQ(rank, 1);
}

TEST(Ownership, ABlockThatTwoRanksCountIsNamed) {
  expect_refusal({"layers.0.bias"}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 1) specs[kBias].counted = true;
  });
}

TEST(Ownership, ABlockThatNobodyCountsIsNamed) {
  expect_refusal({"layers.0.bias", "8", "0"}, [](int, int, auto& specs) { specs[kBias].counted = false; });
}

TEST(Ownership, AMissingRowIsNamed) {
  expect_refusal({"layers.0.q", "96", "88"}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 2) specs[kQ].row_end -= 1;
  });
}

// One row twice and another not at all: the counts alone add up.
TEST(Ownership, OverlapWithTheRightSumIsStillNamed) {
  expect_refusal({"layers.0.q"}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 2) {
      specs[kQ].row_begin -= 1;
      specs[kQ].row_end -= 1;
    }
  });
}

TEST(Ownership, PartialCopiesThatOverlapWithoutBeingEqualAreNamed) {
  expect_refusal({"layers.0.k"}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 1) specs[kHeads].row_end -= 1;  // rank 0 counts all of it
  });
}

TEST(Ownership, ReplicasWithDifferentBlocksAreNamed) {
  expect_refusal({"layers.0.q"}, [](int, int dp_rank, auto& specs) {
    if (dp_rank == 1) specs[kQ].counted = false;
  });
}

TEST(Ownership, DifferentDeclarationsAreNamed) {
  expect_refusal({"layers.0."}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 3) specs[kQ].name = "layers.0.query";
  });
  expect_refusal({"layers.0.q"}, [](int tp_rank, int, auto& specs) {
    if (tp_rank == 3) specs[kQ].frozen = true;
  });
}

TEST(Ownership, ADifferentNumberOfParametersIsRefused) {
  expect_refusal({"parameters"}, [](int tp_rank, int dp_rank, auto& specs) {
    if (tp_rank == 0 && dp_rank == 0) specs.pop_back();
  });
}

TEST(Ownership, ALayoutForAnotherNumberOfRanksIsRefused) {
  expect_refusal(
      {"data-parallel"}, [](int, int, auto&) {}, 1);
}

TEST(AngleGroups, ScopesNameTheirGroupsAndLeaveFrozenOnesOut) {
  const auto specs = toy_specs(1, 0);
  const AngleGroups tensors = make_angle_groups(specs, AngleScope::kTensor);
  EXPECT_EQ(tensors.names.size(), specs.size() - 1);
  const AngleGroups layers = make_angle_groups(specs, AngleScope::kLayer);
  EXPECT_EQ(layers.names, (std::vector<std::string>{"embedding", "layers.0", "layers.1", "norm", "head"}));
  const AngleGroups whole = make_angle_groups(specs, AngleScope::kGlobal);
  EXPECT_EQ(whole.names.size(), 1u);
  for (std::size_t p = 0; p < specs.size(); ++p) {
    for (const AngleGroups* groups : {&tensors, &layers, &whole}) {
      EXPECT_EQ(groups->of_parameter[p] < 0, specs[p].frozen);
    }
  }
}

TEST(ShardOf, ShardsTileTheBucketAndMayHoldPaddingAlone) {
  const Bucket bucket{32, 32 + 48, false};
  EXPECT_EQ(shard_of(bucket, 3, 0), (Range{32, 48}));
  EXPECT_EQ(shard_of(bucket, 3, 2), (Range{64, 80}));
}

}  // namespace

}  // namespace reprise
