// The last rank fails while its peers wait in a barrier: the whole job must end with the exit code of the failure.
#include "parallel/mpi_communicator.hpp"

int main(int argc, char** argv) {
  reprise::MpiEnvironment environment(&argc, &argv);
  const auto world = environment.world();
  if (world->rank() == world->size() - 1) world->abort(6);
  world->barrier();
  return 0;
}
