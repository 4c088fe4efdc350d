#pragma once

#include <memory>

#include "parallel/communicator.hpp"

namespace reprise {

/// Owns MPI_Init / MPI_Finalize of the process; one per process, alive as long as any MPI communicator.
/// Finalizes only after a clean run: when destroyed while unwinding it leaves MPI to the abort path.
class MpiEnvironment {
 public:
  /// Throws Error(kCommunication) with the remedy where srun was started without PMIx.
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// MPI_COMM_WORLD. abort() is MPI_Abort.
  [[nodiscard]] std::unique_ptr<Communicator> world();
  /// Ranks on this host (shared memory domain).
  [[nodiscard]] int local_size() const;
  [[nodiscard]] int local_rank() const;
};

}  // namespace reprise
