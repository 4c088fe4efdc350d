#include "parallel/thread_communicator.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "core/error.hpp"
#include "parallel/process_groups.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

const Stream kStream{CpuStream{}};

TEST(RunRanks, RethrowsTheFirstFailureAndReleasesThePeers) {
  std::atomic<int> released = 0;
  const auto body = [&](Communicator& world) {
    if (world.rank() == 2) throw std::invalid_argument("rank 2 is out");
    try {
      world.barrier();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCommunication);
      ++released;
      throw;
    }
  };
  EXPECT_THROW(run_ranks(4, body), std::invalid_argument);
  EXPECT_EQ(released, 3);
}

TEST(RunRanks, FailureReachesRanksThatWaitInAnotherGroup) {
  const auto body = [](Communicator& world) {
    const auto groups = ProcessGroups::make(world, 2);
    if (world.rank() == 3) throw std::invalid_argument("rank 3 is out");
    std::vector<float> values(100);
    if (groups.tp->rank() == 0) groups.dp->all_reduce<float>(kStream, values);
    groups.tp->all_reduce<float>(kStream, values);
  };
  EXPECT_THROW(run_ranks(4, body), std::invalid_argument);
}

TEST(RunRanks, ARankThatReturnsEarlyIsNamed) {
  expect_error(ErrorKind::kCommunication, {"in barrier", "world rank 1 has already returned"}, [] {
    run_ranks(3, [](Communicator& world) {
      if (world.rank() != 1) world.barrier();
    });
  });
}

TEST(RunRanks, ARankMayReturnWhileASubgroupGoesOn) {
  run_ranks(4, [](Communicator& world) {
    const auto pair = world.split(world.rank() / 2, 0, "pair");
    for (int i = 0; i < (world.rank() < 2 ? 1 : 200); ++i) pair->barrier();
  });
}

TEST(ThreadCommunicator, AbortPoisonsPendingAndLaterCalls) {
  auto worlds = make_thread_communicators(2);
  std::thread waiting([&] {
    expect_error(ErrorKind::kCommunication, {"[world]", "rank 0 in barrier", "world rank 1 aborted", "exit code 7"},
                 [&] { worlds[0]->barrier(); });
  });
  worlds[1]->abort(7);
  waiting.join();
  std::vector<float> values(3);
  for (auto& world : worlds) {
    expect_error(ErrorKind::kCommunication, {"in all_reduce", "aborted"},
                 [&] { world->all_reduce<float>(kStream, values); });
  }
}

/// Every rank gets the same error, and the group stays usable when all of them caught it.
void expect_disagreement(int ranks, const std::string& part, const std::function<void(Communicator&)>& body) {
  run_ranks(ranks, [&](Communicator& world) {
    expect_error(ErrorKind::kCommunication, {part, world.name(), "rank " + std::to_string(world.rank())},
                 [&] { body(world); });
    world.barrier();
  });
}

TEST(ThreadCommunicator, DisagreeingCallsAreErrorsOnEveryRank) {
  expect_disagreement(3, "rank 0 brings 4 elements and rank 1 5", [](Communicator& world) {
    std::vector<float> values(world.rank() == 1 ? 5 : 4);
    world.all_reduce<float>(kStream, values);
  });
  expect_disagreement(2, "rank 0 brings float32 and rank 1 float64", [](Communicator& world) {
    std::vector<float> floats(4);
    std::vector<double> doubles(4);
    if (world.rank() == 0) {
      world.all_reduce<float>(kStream, floats);
    } else {
      world.all_reduce<double>(kStream, doubles);
    }
  });
  expect_disagreement(2, "rank 0 calls barrier and rank 1 broadcast", [](Communicator& world) {
    std::vector<float> values(4);
    if (world.rank() == 0) {
      world.barrier();
    } else {
      world.broadcast<float>(kStream, values, 0);
    }
  });
  expect_disagreement(2, "differ in op or root", [](Communicator& world) {
    std::vector<float> values(4);
    world.broadcast<float>(kStream, values, world.rank());
  });
  expect_disagreement(2, "bring other counts", [](Communicator& world) {
    std::vector<float> input(2), output(world.rank() == 0 ? 4 : 5);
    const std::vector<std::int64_t> counts =
        world.rank() == 0 ? std::vector<std::int64_t>{2, 2} : std::vector<std::int64_t>{3, 2};
    world.all_gather<float>(kStream, input, output, counts);
  });
  expect_disagreement(2, "rank 0 sends 2 elements to rank 1, which expects 1", [](Communicator& world) {
    std::vector<float> send(2), receive(1);
    const std::vector<std::int64_t> none{0, 0};
    if (world.rank() == 0) {
      world.all_to_all<float>(kStream, send, std::vector<std::int64_t>{0, 2}, {}, none);
    } else {
      world.all_to_all<float>(kStream, {}, none, receive, std::vector<std::int64_t>{1, 0});
    }
  });
}

TEST(ThreadCommunicator, ThreadsOfAStreamDoNotChangeTheSum) {
  std::vector<float> alone(200000), threaded(200000);
  for (std::vector<float>* result : {&alone, &threaded}) {
    run_ranks(2, [&](Communicator& world) {
      ThreadPool pool(3);
      const Stream stream{CpuStream{result == &threaded ? &pool : nullptr}};
      std::vector<float> values(result->size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = 1.0f / static_cast<float>(i + 1 + static_cast<std::size_t>(world.rank()));
      }
      world.all_reduce<float>(stream, values);
      if (world.rank() == 0) *result = values;
    });
  }
  EXPECT_EQ(alone, threaded);
}

}  // namespace

}  // namespace reprise
