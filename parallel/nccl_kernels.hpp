#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/dtype.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// What a rank adds up, in device memory: its own part, and the parts that came from its peers, one behind the other
/// in rank order. rank == size: there is no own part, all lie behind each other.
struct RankAddends {
  const void* own = nullptr;
  const void* peers = nullptr;
  std::int64_t stride = 0;  ///< elements from one peer's part to the next one's
  int rank = 0;
  int size = 1;
};

/// output[i] = ((rank 0's [i] + rank 1's [i]) + ...): the bits of reduce_in_rank_order in rank_order.hpp. float32,
/// float64 and int64 in their own type, bfloat16 in float32, rounded once; kMax propagates NaN. output may be `own`.
void reduce_in_rank_order(const CudaStream& stream, const RankAddends& addends, void* output, std::int64_t count,
                          DType dtype, ReduceOp op);

/// *host_word = value when the stream's work has come so far; `host_word` is page-locked host memory.
void write_when_reached(const CudaStream& stream, std::uint64_t* host_word, std::uint64_t value);

}  // namespace reprise
