#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.hpp"
#include "core/parameter.hpp"
#include "core/stream.hpp"
#include "layers/lora.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// One Hugging Face matrix of a ColumnParallelLinear and the rows of it (output features) that this rank holds.
struct ColumnPart {
  std::string name;  ///< without ".weight"
  std::int64_t global_rows = 0;
  Range rows;
  bool counted = true;  ///< false on all but one of the ranks that hold the same rows
};

/// y = x [W_1; W_2; ...]^T + [b_1, b_2, ...]: several matrices that read the same input, multiplied as one, with output
/// features cut over tp. The matrices are declared one behind the other and are one matrix where their slots touch
/// (sizes that are multiples of 16 elements); elsewhere they are copied together for the call. No communication: the
/// caller sums d_x over tp (token_shards.hpp). Where the set has no gradients, W is frozen: no d_W is computed. `lora`:
/// adapters of the matrices that it names.
template <class T>
class ColumnParallelLinear {
 public:
  ColumnParallelLinear(ParameterSet<T>& parameters, const std::string& layer, std::int64_t in_features,
                       const std::vector<ColumnPart>& parts, bool has_bias, const Lora<T>& lora = {});

  [[nodiscard]] std::int64_t out_features() const { return out_features_; }  ///< of this rank

  /// x [tokens, in], y [tokens, out], overwritten.
  void forward(const Stream& stream, Arena& arena, MatrixView<const T> x, MatrixView<T> y) const;
  /// d_x = d_y W: this rank's part of the sum over tp, and so of the adapters' d_A (which is added up over tp later).
  void backward_input(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                      MatrixView<T> d_x) const;
  /// d_W += d_y^T x, d_b += sum over tokens of d_y, and the adapters' d_B.
  void backward_weight(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x) const;

 private:
  [[nodiscard]] MatrixView<const T> weight(const Stream& stream, Arena& arena) const;

  ParameterSet<T>* parameters_;
  std::vector<std::int64_t> weights_, biases_;  // parameter indices
  std::int64_t in_features_, out_features_ = 0;
  LoraAdapters<T> adapters_;
};

/// y = x W^T with input features cut over tp: each rank makes a partial sum of y. The bias, whole on every rank, is
/// added by the caller's add_bias after the ranks are summed. No communication here. Frozen and adapted as above: the
/// adapter's part of y is summed with the rest.
template <class T>
class RowParallelLinear {
 public:
  /// `cols`: this rank's input features. `counts_replicas`: this rank counts the bias. `sum_bias_over_tp`: ranks see
  /// different tokens (sequence parallelism), so the bias gradients are partial sums.
  RowParallelLinear(ParameterSet<T>& parameters, const std::string& layer, const std::string& name,
                    std::int64_t out_features, std::int64_t global_in_features, Range cols, bool has_bias,
                    bool counts_replicas, bool sum_bias_over_tp, const Lora<T>& lora = {});

  /// x [tokens, in], y [tokens, out]: this rank's part of the sum over tp, without bias.
  void forward(const Stream& stream, Arena& arena, MatrixView<const T> x, MatrixView<T> y) const;
  /// y += bias on every row; nothing without a bias.
  void add_bias(const Stream& stream, MatrixView<T> y) const;
  /// d_x = d_y W, d_W += d_y^T x, and the same of the adapter.
  void backward(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                MatrixView<T> d_x) const;
  /// d_b += sum over rows of d_y, which is given without the rows of other ranks.
  void backward_bias(const Stream& stream, Arena& arena, MatrixView<const T> d_y) const;

 private:
  ParameterSet<T>* parameters_;
  std::int64_t weight_, bias_ = -1;
  LoraAdapters<T> adapter_;
};

}  // namespace reprise
