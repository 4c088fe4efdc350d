#include "tests/support/mpi_test_main.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "parallel/staged_communicator.hpp"

namespace reprise {

namespace {

std::unique_ptr<MpiEnvironment> environment;
std::unique_ptr<Communicator> world;

/// Prints what failed with the rank's number. A fatal failure ends the job: this rank has left its test in the middle,
/// and the others would wait for it.
class FailureReporter final : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo& test) override {
    running_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d of %d, %s, %s:%d\n%s\n", world->rank(), world->size(), running_.c_str(),
                 result.file_name() == nullptr ? "?" : result.file_name(), result.line_number(), result.message());
    std::fflush(stderr);
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->HasFatalFailure()) world->abort(1);
  }

  std::string running_;
};

}  // namespace

Communicator& mpi_test_world() {
  return *world;
}
MpiEnvironment& mpi_test_environment() {
  return *environment;
}

}  // namespace reprise

int main(int argc, char** argv) {
  using namespace reprise;
  testing::InitGoogleTest(&argc, argv);
  environment = std::make_unique<MpiEnvironment>(&argc, &argv);
  world = make_staged_communicator(environment->world());
  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world->rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new FailureReporter);

  std::vector<std::int64_t> failed{RUN_ALL_TESTS() != 0 ? 1 : 0};
  world->all_reduce<std::int64_t>(Stream(CpuStream{}), failed, ReduceOp::kMax);
  world.reset();
  environment.reset();
  return static_cast<int>(failed[0]);
}
