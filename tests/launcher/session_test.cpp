#include "launcher/session.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "core/error.hpp"
#include "launcher/launch_environment.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

struct Ended {
  int exit_code = 0;
  std::string printed;
};

Ended run_threads(int ranks, const std::function<void(Communicator& world, int threads)>& body) {
  testing::internal::CaptureStderr();
  const int code = run_ranked(0, nullptr, {.transport = "thread", .thread_ranks = ranks, .threads = 1}, body);
  return {code, testing::internal::GetCapturedStderr()};
}

TEST(RunRanked, EveryRankRuns) {
  std::atomic<int> sum = 0;
  const Ended ended = run_threads(3, [&](Communicator& world, int threads) {
    EXPECT_EQ(world.size(), 3);
    EXPECT_EQ(threads, 1);
    sum += world.rank() + 1;
    world.barrier();
  });
  EXPECT_EQ(ended.exit_code, 0);
  EXPECT_EQ(ended.printed, "");
  EXPECT_EQ(sum, 6);
}

TEST(RunRanked, AFailureOfOneRankEndsAllAndIsPrintedOnce) {
  const Ended ended = run_threads(4, [](Communicator& world, int) {
    require(world.rank() != 2, ErrorKind::kData, "document 17 is damaged\nmake it again");
    world.barrier();
  });
  EXPECT_EQ(ended.exit_code, 3);
  EXPECT_EQ(ended.printed, "error: rank 2: document 17 is damaged\n  make it again\n");
}

TEST(RunRanked, WhatAllRanksFindIsPrintedOnceWithoutARank) {
  const Ended ended = run_threads(3, [](Communicator&, int) { fail(ErrorKind::kUsage, "heads do not divide"); });
  EXPECT_EQ(ended.exit_code, 2);
  EXPECT_EQ(ended.printed, "error: heads do not divide\n");
}

TEST(RunRanked, ForeignExceptionsHaveExitCodesToo) {
  const Ended internal = run_threads(1, [](Communicator&, int) { throw std::runtime_error("odd"); });
  EXPECT_EQ(internal.exit_code, 1);
  EXPECT_EQ(internal.printed, "error: unexpected: odd\n");
  const Ended memory = run_threads(1, [](Communicator&, int) { throw std::bad_alloc(); });
  EXPECT_EQ(memory.exit_code, 1);
  EXPECT_NE(memory.printed.find("out of memory"), std::string::npos);
  const Ended disk = run_threads(1, [](Communicator&, int) { std::filesystem::create_directory("/proc/none"); });
  EXPECT_EQ(disk.exit_code, 8);
}

TEST(RunRanked, BeingPreemptedIsNoError) {
  const Ended ended = run_threads(2, [](Communicator&, int) { fail(ErrorKind::kPreempted, "stopped at step 5"); });
  EXPECT_EQ(ended.exit_code, 75);
  EXPECT_EQ(ended.printed, "preempted: stopped at step 5\n");
}

TEST(RunRanked, AProcessAloneHasTheSelfTransport) {
  int size = 0, own_threads = 0;
  const int code = run_ranked(0, nullptr, {.transport = "auto", .thread_ranks = 1, .threads = 0},
                              [&](Communicator& world, int threads) {
                                size = world.size();
                                own_threads = threads;
                              });
  EXPECT_EQ(code, 0);
  EXPECT_EQ(size, 1);
  EXPECT_GE(own_threads, 1);
}

TEST(RunRanked, TransportsThatCannotBeAreUsageErrors) {
  const auto code_of = [](const RankOptions& options) {
    testing::internal::CaptureStderr();
    const int code = run_ranked(0, nullptr, options, [](Communicator&, int) { FAIL() << "must not run"; });
    testing::internal::GetCapturedStderr();
    return code;
  };
  EXPECT_EQ(code_of({.transport = "pigeon", .thread_ranks = 1, .threads = 1}), 2);
  EXPECT_EQ(code_of({.transport = "self", .thread_ranks = 2, .threads = 1}), 2);
  EXPECT_EQ(code_of({.transport = "thread", .thread_ranks = 0, .threads = 1}), 2);
}

TEST(Session, HasTheGridOfItsRank) {
  const Ended ended = run_threads(4, [](Communicator& world, int threads) {
    Session session(world, 2, true, threads, {.device = "cpu"});
    EXPECT_EQ(session.groups().tp_size(), 2);
    EXPECT_EQ(session.groups().dp_size(), 2);
    EXPECT_EQ(session.groups().tp_rank(), world.rank() % 2);
    EXPECT_EQ(session.is_first(), world.rank() == 0);
    EXPECT_TRUE(session.context().sequence_parallel);
    EXPECT_EQ(session.host().cpu().num_threads(), 1);
    EXPECT_TRUE(session.stream().is_cpu());
    EXPECT_EQ(session.gpu(), nullptr);
  });
  EXPECT_EQ(ended.exit_code, 0) << ended.printed;
  const Ended refused =
      run_threads(3, [](Communicator& world, int threads) { Session session(world, 2, false, threads); });
  EXPECT_EQ(refused.exit_code, 2);
}

TEST(Session, TellsWhatADeviceLacks) {
  for (const DeviceOptions& options : {DeviceOptions{"gpu", "auto"}, DeviceOptions{"cpu", "staged"}}) {
    const Ended ended =
        run_threads(2, [&](Communicator& world, int threads) { Session session(world, 1, false, threads, options); });
    EXPECT_EQ(ended.exit_code, 2) << ended.printed;
  }
}

TEST(Threads, AreTheCoresOfTheMaskSharedWithItsOtherOwners) {
  const std::vector<int> all = {0, 1, 2, 3}, low = {0, 1}, high = {2, 3}, one = {0};
  EXPECT_EQ(threads_of_process(all, {all}, 0.0), 4);
  EXPECT_EQ(threads_of_process(all, {all, all}, 0.0), 2);
  EXPECT_EQ(threads_of_process(low, {low, high}, 0.0), 2);
  EXPECT_EQ(threads_of_process(one, {one, one}, 0.0), 1);
  EXPECT_EQ(threads_of_process(all, {all, one}, 0.0), 3);
  EXPECT_EQ(threads_of_process(all, {all, all, all}, 0.0), 1);
  EXPECT_EQ(threads_of_process(all, {all}, 2.0), 2);       // a container that may use two cores
  EXPECT_EQ(threads_of_process(all, {all, all}, 2.0), 1);  // two ranks in it
  EXPECT_EQ(threads_of_process(all, {all}, 0.5), 1);
}

class EnvironmentTest : public testing::Test {
 protected:
  EnvironmentTest() { clear(); }
  ~EnvironmentTest() override { clear(); }
  static void clear() {
    for (const char* name :
         {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}) {
      ::unsetenv(name);
    }
  }
};

TEST_F(EnvironmentTest, AloneIsNoLauncher) {
  const LaunchEnvironment launch = detect_launch();
  EXPECT_FALSE(launch.mpi);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.size, 1);
}

TEST_F(EnvironmentTest, MpirunIsSeen) {
  ::setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  ::setenv("OMPI_COMM_WORLD_RANK", "3", 1);
  const LaunchEnvironment launch = detect_launch();
  EXPECT_TRUE(launch.mpi);
  EXPECT_EQ(launch.launcher, "mpirun");
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.size, 4);
}

TEST_F(EnvironmentTest, SrunIsSeenAndABatchScriptIsNot) {
  ::setenv("SLURM_PROCID", "0", 1);
  EXPECT_FALSE(detect_launch().mpi);
  ::setenv("SLURM_STEP_NUM_TASKS", "2", 1);
  ::setenv("SLURM_PROCID", "1", 1);
  const LaunchEnvironment launch = detect_launch();
  EXPECT_TRUE(launch.mpi);
  EXPECT_FALSE(launch.pmix);
  EXPECT_EQ(launch.launcher, "srun");
  EXPECT_EQ(launch.rank, 1);
  EXPECT_EQ(launch.size, 2);
}

TEST_F(EnvironmentTest, SrunWithoutPmixIsRefusedBeforeMpiStarts) {
  check_process_manager();
  ::setenv("SLURM_STEP_NUM_TASKS", "1", 1);
  check_process_manager();
  ::setenv("SLURM_STEP_NUM_TASKS", "2", 1);
  expect_error(ErrorKind::kCommunication, {"2 tasks", "srun --mpi=pmix"}, [] { check_process_manager(); });
  ::setenv("PMIX_RANK", "0", 1);
  check_process_manager();
}

TEST(Stop, SignalsAskForIt) {
  install_stop_signals();
  EXPECT_FALSE(stop_requested());
  ::raise(SIGUSR1);
  EXPECT_TRUE(stop_requested());
}

TEST(Memory, ThePeakIsMeasured) {
  EXPECT_GT(peak_memory_bytes(), std::int64_t{1} << 20);
}

}  // namespace
}  // namespace reprise
