// Lets ctest run the same tests with threads, blocks and streams in another order: REPRISE_EMULATION=descending,late.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/support/cuda_emulation/settings.hpp"

namespace {

class Emulation : public testing::Environment {
 public:
  void SetUp() override {
    if (const char* const text = std::getenv("REPRISE_EMULATION")) {
      cuda_emulation::Settings settings = cuda_emulation::parse_settings(text);
      settings.num_devices = cuda_emulation::settings().num_devices;  // the test program's own choice
      cuda_emulation::set_settings(settings);
    }
  }
};

[[maybe_unused]] testing::Environment* const kRegistered = testing::AddGlobalTestEnvironment(new Emulation);

}  // namespace
