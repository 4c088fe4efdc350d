#pragma once

#include <functional>

#include "parallel/staged_communicator.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/device.hpp"

namespace reprise {

/// run_ranks on whatever device the program tests: each rank is a thread with a queue of its own (test_stream()), and
/// its world and the groups split from it take host memory (with a CPU stream) and device memory (with test_stream()).
/// A rank's device memory must be gone when its body returns: bring results out with to_host.
inline void run_device_ranks(int size, const std::function<void(Communicator& world)>& body,
                             const StagingOptions& options = {}) {
  run_ranks(size, [&](Communicator& world) {
    const auto staged = make_staged_communicator(world, options);
    body(*staged);
    synchronize(test_stream());  // what the body left under way still needs this thread
  });
}

}  // namespace reprise
