#pragma once

#include <cstdint>

#include "core/arena.hpp"
#include "core/parameter.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// Lookup in an embedding whose rows are cut over tp: y_t = W[token_t]. Each rank writes its own ids' rows and zeros
/// for the others, and the ranks' outputs are summed (one addend is not zero, so the sum is exact in every storage
/// type). Communication: forward one all-reduce, or with sequence parallelism a reduce-scatter over tokens; backward
/// none, or an all-gather.
template <class T>
class VocabParallelEmbedding {
 public:
  VocabParallelEmbedding(ParameterSet<T>& parameters, const VocabPartition& vocab, std::int64_t hidden_size,
                         int tp_rank);

  /// This rank's rows (all, or its shard of tokens) of the embedded tokens, in the arena. `tokens` lie on the device.
  [[nodiscard]] MatrixView<T> forward(const Context& context, VectorView<const std::int32_t> tokens) const;
  /// d_weight[id] += sum of d_output over the tokens with that id, in token order. d_output: this rank's rows.
  /// `host_tokens` are the same in host memory, where they are sorted.
  void backward(const Context& context, VectorView<const std::int32_t> tokens,
                VectorView<const std::int32_t> host_tokens, MatrixView<T> d_output) const;

  [[nodiscard]] std::int64_t parameter() const { return weight_; }

 private:
  ParameterSet<T>* parameters_;
  Range ids_;
  std::int64_t weight_;
};

}  // namespace reprise
