#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "parallel/communicator.hpp"

namespace reprise {

/// Owns MPI_Init / MPI_Finalize of the process; one per process, alive as long as any MPI communicator.
/// Finalizes only after a clean run: when destroyed while unwinding it leaves MPI to the abort path.
class MpiEnvironment {
 public:
  /// Throws Error(kCommunication) when MPI does not start.
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// MPI counts elements in an int: larger buffers travel in several messages.
  static constexpr std::int64_t kMaxMessage = std::numeric_limits<int>::max();
  /// MPI_COMM_WORLD. abort() is MPI_Abort.
  [[nodiscard]] std::unique_ptr<Communicator> world(std::int64_t max_message = kMaxMessage);
  /// Ranks on this host (shared memory domain).
  [[nodiscard]] int local_size() const { return local_size_; }
  [[nodiscard]] int local_rank() const { return local_rank_; }

 private:
  int unwinding_at_birth_;
  int local_size_ = 1;
  int local_rank_ = 0;
};

}  // namespace reprise
