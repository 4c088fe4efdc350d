#pragma once

#include "core/dtype.hpp"
#include "core/view.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

// The two conjugate communications of tensor parallelism, over the rows (tokens) of activations. Between
// tensor-parallel regions a rank holds all tokens, or with context.sequence_parallel the rows
// even_shard(tokens, tp_size, tp_rank). With tp_size 1 neither does anything.

/// The rows of `tokens` that this rank holds between tensor-parallel regions.
[[nodiscard]] Range local_tokens(const Context& context, std::int64_t tokens);

/// Entry into a region: all tokens [tokens, cols]. Sequence parallel: one all-gather into the arena; otherwise `local`
/// itself.
template <class T>
[[nodiscard]] MatrixView<T> gather_tokens(const Context& context, MatrixView<T> local, std::int64_t tokens);

/// The same where the rank's own rows, local_tokens, stand in `all` [tokens, cols] already: its other rows become those
/// of the other ranks. Sequence parallel: one all-gather; otherwise nothing.
template <class T>
void gather_tokens_in_place(const Context& context, MatrixView<T> all);

/// Where a rank writes its part [tokens, cols] of a sum that reduce_tokens brings into `output`: new scratch with
/// sequence parallelism, otherwise `output` itself.
template <class T>
[[nodiscard]] MatrixView<T> partial_tokens(const Context& context, MatrixView<T> output, std::int64_t tokens);

/// Exit of a region: output = this rank's rows of the sum over ranks of `partial`, as given by partial_tokens. Sequence
/// parallel: one reduce-scatter; otherwise one all-reduce in place.
template <class T>
void reduce_tokens(const Context& context, MatrixView<T> partial, MatrixView<T> output);

}  // namespace reprise
