#pragma once

#include "parallel/communicator.hpp"
#include "parallel/mpi_communicator.hpp"

namespace reprise {

/// All ranks of the mpirun that this test program was started with; on a device they are staged (one device for all).
[[nodiscard]] Communicator& mpi_test_world();
[[nodiscard]] MpiEnvironment& mpi_test_environment();

}  // namespace reprise
