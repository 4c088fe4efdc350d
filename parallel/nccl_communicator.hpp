#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "parallel/communicator.hpp"

namespace reprise {

struct NcclOptions {
  /// A collective that is not done so long after it was asked for, or after the one before it was done, has failed: a
  /// peer is gone or does something else. The GPU's own work between two collectives counts as well.
  double deadline_seconds = 600;
  /// Sums by NCCL itself (all-reduce of kSum, reduce-scatter): less traffic in memory, but in an order that depends on
  /// sizes, ranks and NCCL's choice of algorithm, and bfloat16 is rounded at every hop.
  bool native_sums = false;
  std::int64_t scratch_bytes = std::int64_t{64} << 20;  ///< of incoming addends; longer sums go in rounds
  std::string log_file{};                               ///< of this rank, written when a group fails; empty: none
  int log_entries = 100;                                ///< collectives of each group that the log remembers
  bool copies_alone = true;  ///< a group of one rank copies without NCCL; false makes it use NCCL, to try it out
};

/// Collectives between GPUs by NCCL, one GPU per rank (NCCL refuses two ranks on one; see make_staged_communicator).
///
/// `bootstrap` (mpi or thread) has the same ranks. It carries the id by which NCCL's ranks find each other, every verb
/// on host memory (a CPU stream), barrier, abort and what `split` must know. Collective over it. `stream` names the
/// GPU.
///
/// Verbs on a CUDA stream are asked for in the stream's order; the host does not wait for them to be done. Collectives
/// of one group run one after the other, also on different streams. All-to-all and all-gather with uneven counts are
/// grouped sends and receives. Sums are ours, in rank order, with the transport-independent bits of communicator.hpp: a
/// reduce-scatter is an all-to-all and a sum by the owner, an all-reduce that and an all-gather (for few numbers one
/// all-gather and the sum everywhere), unless `native_sums`. Nothing is allocated once the longest call has been made.
///
/// Failures: communicators are non-blocking, and a thread of this rank looks for errors and for the deadline. The first
/// failure writes the log, aborts all groups of this rank, so that the GPU stops waiting, and is thrown by every later
/// call; what a stream brings to the host in between is undefined. A peer in the same process learns of it by its own
/// deadline. All CUDA streams used here must outlive the communicator.
[[nodiscard]] std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> bootstrap,
                                                                   const Stream& stream,
                                                                   const NcclOptions& options = {});
/// The same over a bootstrap that is not owned and lives longer.
[[nodiscard]] std::unique_ptr<Communicator> make_nccl_communicator(Communicator& bootstrap, const Stream& stream,
                                                                   const NcclOptions& options = {});

/// "2.28.9"; empty in a build without NCCL, whose make_nccl_communicator throws Error(kUsage).
[[nodiscard]] std::string nccl_version();

}  // namespace reprise
