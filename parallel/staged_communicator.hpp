#pragma once

#include <cstdint>
#include <memory>

#include "parallel/communicator.hpp"

namespace reprise {

struct StagingOptions {
  CpuStream host{};  ///< the threads that sum over ranks in host memory; must outlive the communicator
  /// Longer all-reduces, all-gathers, reduce-scatters and broadcasts go in rounds of so much page-locked memory.
  /// The same on every rank.
  std::int64_t bytes = std::int64_t{64} << 20;
};

/// Collectives on device memory over a transport that knows host memory alone (thread, mpi, self): each copies what
/// this rank sends into page-locked memory in the order of the stream's work, waits for it, runs the same collective of
/// `inner`, and copies the result back. So ranks may share a GPU, and results have the transport's bits.
///
/// The host waits for the stream in every collective, and until the result is on the device: staging memory is free
/// between calls. It is kept and grows only for a longer call than any before; all_to_all stages all it moves. A group
/// of one rank copies on the device and waits for nothing. With a CPU stream every verb is `inner`'s own. Calls and
/// bytes are counted here as `inner` would; `inner` itself counts one call a round. Groups split from it are staged as
/// well.
[[nodiscard]] std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> inner,
                                                                     const StagingOptions& options = {});
/// The same over a communicator that is not owned and lives longer.
[[nodiscard]] std::unique_ptr<Communicator> make_staged_communicator(Communicator& inner,
                                                                     const StagingOptions& options = {});

}  // namespace reprise
