#include <gtest/gtest.h>

#include "parallel/staged_communicator.hpp"
#include "tests/parallel/communicator_cases.hpp"
#include "tests/support/device.hpp"
#include "tests/support/mpi_test_main.hpp"

namespace reprise {

namespace {

class MpiCommunicatorTest : public testing::TestWithParam<CommunicatorCase> {};

TEST_P(MpiCommunicatorTest, Holds) {
  GetParam().run(mpi_test_world(), test_stream());
}

// Buffers beyond the range of int travel in several messages; a small limit takes the same road.
TEST_P(MpiCommunicatorTest, HoldsInMessagesOfOneThousandElements) {
  const auto world = make_staged_communicator(mpi_test_environment().world(1000));
  GetParam().run(*world, test_stream());
}

INSTANTIATE_TEST_SUITE_P(Mpi, MpiCommunicatorTest, testing::ValuesIn(communicator_cases()),
                         [](const auto& test) { return test.param.name; });

TEST(MpiEnvironment, AllRanksOfAnMpirunOnOneHostAreLocal) {
  EXPECT_EQ(mpi_test_environment().local_size(), mpi_test_world().size());
  EXPECT_EQ(mpi_test_environment().local_rank(), mpi_test_world().rank());
}

// A message that is longer than its receiver expects is MPI's own error, not a crash.
TEST(MpiCommunicator, DisagreeingCountsAreACommunicationError) {
  Communicator& world = mpi_test_world();
  if (world.size() != 2) return;
  const Stream stream{CpuStream{}};
  const auto pair = world.split(0, world.rank(), "pair");
  const std::int64_t sent = world.rank() == 0 ? 3 : 1;
  const std::vector<std::int64_t> send_counts{world.rank() == 0 ? 0 : sent, world.rank() == 0 ? sent : 0};
  const std::vector<std::int64_t> receive_counts{world.rank() == 0 ? 0 : 1, world.rank() == 0 ? 1 : 0};
  std::vector<float> send(static_cast<std::size_t>(sent)), receive(1);
  const auto exchange = [&] { pair->all_to_all<float>(stream, send, send_counts, receive, receive_counts); };
  if (world.rank() == 0) {
    exchange();
  } else {
    EXPECT_THROW(exchange(), std::runtime_error);
  }
}

}  // namespace

}  // namespace reprise
