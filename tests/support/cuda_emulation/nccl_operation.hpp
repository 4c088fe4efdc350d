#pragma once

#include <nccl.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace cuda_emulation {

using Bytes = std::vector<std::byte>;

/// One call between ncclGroupStart and ncclGroupEnd, as this rank sees it: messages of `bytes` bytes.
struct Operation {
  struct Send {
    int to;
    const void* data;
  };
  std::string what;  ///< both ends must say the same
  std::size_t bytes = 0;
  std::vector<Send> sends;
  std::vector<int> receives;
  std::function<void(const std::vector<Bytes>&)> store;  ///< the received bytes, in the order of `receives`
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
};

/// Adds it to the open group, or starts it.
ncclResult_t ask(Operation operation);
/// `result`, with what ncclGetLastError then says in this thread.
ncclResult_t refuse(ncclResult_t result, const std::string& text);

[[nodiscard]] int ranks_of(ncclComm_t comm);
[[nodiscard]] int rank_of(ncclComm_t comm);

}  // namespace cuda_emulation
