#pragma once

#include "parallel/communicator.hpp"
#include "parallel/elements.hpp"

namespace reprise::untyped {

// The verbs of a communicator for transports that hand them on to another one: checked and counted there as ever.

void all_reduce(Communicator& group, const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op);
void all_gather(Communicator& group, const Stream& stream, const void* input, void* output, detail::Counts counts,
                DType dtype);
void reduce_scatter(Communicator& group, const Stream& stream, const void* input, void* output, detail::Counts counts,
                    DType dtype);
void all_to_all(Communicator& group, const Stream& stream, const void* send, detail::Counts send_counts, void* receive,
                detail::Counts receive_counts, DType dtype);
void broadcast(Communicator& group, const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root);

}  // namespace reprise::untyped
