#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "core/cuda/handle.hpp"
#include "core/cuda_stream.hpp"

namespace reprise {

/// The library handle, plans and workspace of gemm_cuda.cpp, made at the first product.
struct GemmState;
struct DeleteGemmState {
  void operator()(GemmState* state) const noexcept;
};

/// What belongs to one queue. Used by one host thread at a time.
class CudaQueueState {
 public:
  UniqueHandle<cudaStream_t, cudaStreamDestroy> stream;
  int device = 0;
  std::unique_ptr<GemmState, DeleteGemmState> gemm;
};

}  // namespace reprise
