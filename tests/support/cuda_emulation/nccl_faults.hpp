#pragma once

#include <nccl.h>

namespace cuda_emulation {

/// The next transfers of a rank on `device` never end, and its communicator reports `error` while they run, as when
/// NCCL has lost a peer.
void fail_next_transfer(int device, ncclResult_t error);

/// Communicators that were made and not yet destroyed or aborted.
[[nodiscard]] int living_nccl_communicators();

}  // namespace cuda_emulation
