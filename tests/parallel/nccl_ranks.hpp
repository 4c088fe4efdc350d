#pragma once

#include <functional>

#include "core/cuda_stream.hpp"
#include "parallel/nccl_communicator.hpp"
#include "parallel/thread_communicator.hpp"

namespace reprise {

/// Ranks as threads, rank r on GPU r, with NCCL between them.
inline void run_nccl_ranks(int size, const NcclOptions& options,
                           const std::function<void(Communicator& world, const Stream& stream)>& body) {
  run_ranks(size, [&](Communicator& bootstrap) {
    const CudaQueue queue(bootstrap.rank());
    const Stream stream(queue.stream());
    const auto world = make_nccl_communicator(bootstrap, stream, options);
    body(*world, stream);
  });
}

}  // namespace reprise
