#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.hpp"
#include "core/stream.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// output[i] = ((inputs[0][i] + inputs[1][i]) + inputs[2][i]) + ...: the one summation that every transport uses, so
/// that their results have the same bits. float32, float64 and int64 in their own type (int64 wraps); bfloat16 in
/// float32, rounded once. kMax propagates NaN. output may be one of the inputs. Throws kInternal for other types.
void reduce_in_rank_order(const Stream& stream, std::span<const void* const> inputs, void* output, std::int64_t count,
                          DType dtype, ReduceOp op);

}  // namespace reprise
