// What a GPU cannot be made to do: peers that never arrive, errors of NCCL, ranks that share a GPU.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "core/error.hpp"
#include "core/transfer.hpp"
#include "parallel/process_groups.hpp"
#include "tests/parallel/nccl_ranks.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/nccl_faults.hpp"
#include "tests/support/cuda_emulation/settings.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {

namespace {

/// Before gtest asks how many ranks to test with.
[[maybe_unused]] const bool kHasDevices = [] {
  cuda_emulation::Settings settings = cuda_emulation::settings();
  settings.num_devices = 8;
  cuda_emulation::set_settings(settings);
  return true;
}();

std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

/// One collective and a look at its result: on a GPU the call returns before it is done, and only a later call can
/// tell that it has failed.
void all_reduce_twice(Communicator& group, const Stream& stream, VectorView<float> values) {
  for (int i = 0; i < 2; ++i) {
    group.all_reduce<float>(stream, values);
    synchronize(stream);
  }
}

class NcclFailures : public testing::Test {
 protected:
  void TearDown() override { EXPECT_EQ(cuda_emulation::living_nccl_communicators(), 0); }
};

TEST_F(NcclFailures, APeerThatNeverArrivesIsMissedAtTheDeadline) {
  const TemporaryFolder folder;
  const auto log_of = [&](int rank) { return (folder.path() / ("rank" + std::to_string(rank))).string(); };
  run_ranks(3, [&](Communicator& bootstrap) {
    const CudaQueue queue(bootstrap.rank());
    const Stream stream(queue.stream());
    const auto world =
        make_nccl_communicator(bootstrap, stream, {.deadline_seconds = 1.5, .log_file = log_of(bootstrap.rank())});
    Buffer<float> values(stream, 1000, "values");
    world->all_reduce<float>(stream, values.view());
    synchronize(stream);
    if (world->rank() != 2) {
      expect_error(ErrorKind::kCommunication,
                   {"[world]", "rank " + std::to_string(world->rank()) + " of 3", "all_reduce", "collective 2",
                    "1000 elements of float32", "1.5 s", log_of(world->rank())},
                   [&] { all_reduce_twice(*world, stream, values.view()); });
      // Every group of the rank is given up.
      expect_error(ErrorKind::kCommunication, {"in broadcast", "have failed", "collective 2"},
                   [&] { world->broadcast<float>(stream, values.view(), 0); });
    }
    world->barrier();  // the host's own way between the ranks goes on
  });
  for (const int rank : {0, 1}) {
    const std::string log = text_of(log_of(rank));
    EXPECT_NE(log.find("group=world rank=" + std::to_string(rank) +
                       "/3 collective=1 verb=all_reduce count=1000 dtype=float32 state=done"),
              std::string::npos)
        << log;
    EXPECT_NE(log.find("collective=2 verb=all_reduce count=1000 dtype=float32 state="), std::string::npos) << log;
    EXPECT_EQ(log.find("collective=2 verb=all_reduce count=1000 dtype=float32 state=done"), std::string::npos) << log;
  }
  EXPECT_EQ(text_of(log_of(2)), "");  // the missing one
}

TEST_F(NcclFailures, AnErrorOfNcclIsReportedInItsWords) {
  run_nccl_ranks(2, {.deadline_seconds = 1.5}, [](Communicator& world, const Stream& stream) {
    Buffer<float> values(stream, 10, "values");
    if (world.rank() == 1) {
      cuda_emulation::fail_next_transfer(1, ncclRemoteError);
      expect_error(ErrorKind::kCommunication,
                   {"[world] rank 1 of 2 in all_reduce (collective 1", "remote process exited", "a peer was lost"},
                   [&] { all_reduce_twice(world, stream, values.view()); });
    } else {
      expect_error(ErrorKind::kCommunication, {"[world] rank 0 of 2", "1.5 s"},
                   [&] { all_reduce_twice(world, stream, values.view()); });
    }
    world.barrier();
  });
}

TEST_F(NcclFailures, RanksThatCallDifferentVerbsDoNotHang) {
  run_nccl_ranks(2, {.deadline_seconds = 1.5}, [](Communicator& world, const Stream& stream) {
    const Buffer<float> input(stream, 5, "input");
    Buffer<float> values(stream, 10, "values");
    expect_error(ErrorKind::kCommunication, {"[world] rank " + std::to_string(world.rank())}, [&] {
      for (int i = 0; i < 2; ++i) {
        if (world.rank() == 0) {
          world.all_gather<float>(stream, input.view(), values.view());
        } else {
          world.broadcast<float>(stream, values.view(), 0);
        }
        synchronize(stream);
      }
    });
    world.barrier();
  });
}

TEST_F(NcclFailures, TheFailureOfOneGroupEndsTheOthersOfItsRank) {
  run_nccl_ranks(4, {.deadline_seconds = 1.5}, [](Communicator& world, const Stream& stream) {
    const auto groups = ProcessGroups::make(world, 2);
    Buffer<float> values(stream, 10, "values");
    if (world.rank() != 3) {  // 2 waits in tp, 1 in dp; 0 finds its peers
      Communicator& group = world.rank() == 1 ? *groups.dp : *groups.tp;
      if (world.rank() == 0 || world.rank() == 1) groups.tp->all_reduce<float>(stream, values.view());
      if (world.rank() != 0) {
        expect_error(ErrorKind::kCommunication, {world.rank() == 1 ? "[dp]" : "[tp]", "1.5 s"},
                     [&] { all_reduce_twice(group, stream, values.view()); });
        Communicator& other = world.rank() == 1 ? *groups.tp : *groups.dp;
        expect_error(ErrorKind::kCommunication, {world.rank() == 1 ? "[tp]" : "[dp]", "have failed"},
                     [&] { other.all_reduce<float>(stream, values.view()); });
      }
    }
    synchronize(stream);
    world.barrier();
  });
}

TEST_F(NcclFailures, TwoRanksOnOneGpuAreToldToStage) {
  run_ranks(2, [](Communicator& bootstrap) {
    const CudaQueue queue(0);
    const Stream stream(queue.stream());
    expect_error(ErrorKind::kCommunication, {"[world] rank 0 of 2 on GPU 0", "Duplicate GPU", "staged"},
                 [&] { static_cast<void>(make_nccl_communicator(bootstrap, stream)); });
    bootstrap.barrier();
  });
}

// A rank that fails for a reason of its own does not wait for what it has asked for.
TEST_F(NcclFailures, UnwindingAbortsWhatIsPending) {
  cuda_emulation::Settings late = cuda_emulation::settings();
  late.late_streams = true;  // else the call itself waits
  const cuda_emulation::ScopedSettings scope(late);
  const auto start = std::chrono::steady_clock::now();
  const auto body = [](Communicator& world, const Stream& stream) {
    const auto part = world.split(0, world.rank(), "part");
    Buffer<float> values(stream, 10, "values");
    if (world.rank() == 0) {
      world.all_reduce<float>(stream, values.view());  // on the same stream before what `part` leaves
      part->all_reduce<float>(stream, values.view());
      throw std::invalid_argument("a failure of its own");
    }
    world.barrier();
  };
  EXPECT_THROW(run_nccl_ranks(2, {.deadline_seconds = 100.0}, body), std::invalid_argument);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST_F(NcclFailures, AbortEndsWhatIsPendingAndIsHeardByPeers) {
  cuda_emulation::Settings late = cuda_emulation::settings();
  late.late_streams = true;
  const cuda_emulation::ScopedSettings scope(late);
  const auto body = [](Communicator& world, const Stream& stream) {
    Buffer<float> values(stream, 10, "values");
    if (world.rank() == 1) {
      expect_error(ErrorKind::kCommunication, {"in barrier", "world rank 0 aborted"}, [&] { world.barrier(); });
      return;
    }
    world.all_reduce<float>(stream, values.view());
    world.abort(6);
    synchronize(stream);  // ends, though the peer has never called
    expect_error(ErrorKind::kCommunication, {"in all_reduce", "aborted the job with exit code 6"},
                 [&] { world.all_reduce<float>(stream, values.view()); });
  };
  run_nccl_ranks(2, {.deadline_seconds = 100.0}, body);
}

TEST(NcclCommunicator, NothingIsAllocatedOnceTheLongestCallWasMade) {
  run_nccl_ranks(3, {}, [](Communicator& world, const Stream& stream) {
    const std::int64_t count = 400000;
    Buffer<float> values(stream, count, "values");
    const std::vector<std::int64_t> counts{count / 2, 0, count / 2};
    const auto own = values.view().slice(world.rank() == 0 ? 0 : count / 2, world.rank() == 1 ? 0 : count / 2);
    const auto step = [&] {
      world.all_reduce<float>(stream, values.view());
      world.all_reduce<float>(stream, values.view().slice(0, 7));
      world.reduce_scatter<float>(stream, values.view(), own, counts);
      world.all_gather<float>(stream, own, values.view(), counts);
      synchronize(stream);
    };
    step();
    world.barrier();
    const auto before = cuda_emulation::device_allocations();
    world.barrier();
    for (int i = 0; i < 3; ++i) step();
    world.barrier();
    EXPECT_EQ(cuda_emulation::device_allocations(), before);
    world.barrier();
  });
}

}  // namespace

}  // namespace reprise
