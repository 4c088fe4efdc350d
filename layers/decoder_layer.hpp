#pragma once

#include <cstdint>
#include <string>

#include "core/parameter.hpp"
#include "layers/attention.hpp"
#include "layers/decoder_config.hpp"
#include "layers/parallel_linear.hpp"
#include "parallel/context.hpp"

namespace reprise {

/// Where the tokens of a micro-batch stand in their documents. On the device, but for the offsets, by which the host
/// cuts the work of attention.
struct DocumentPositions {
  VectorView<const std::int64_t> offsets;      ///< [documents + 1], in host memory
  VectorView<const std::int32_t> rotary_rows;  ///< [tokens], the row of `rotary` for the token's position
  MatrixView<const float> rotary;              ///< RotaryEmbedding::table
  VectorView<const std::int32_t> cache_rows;   ///< [tokens], the token's row in a LayerCache; empty without one

  [[nodiscard]] std::int64_t tokens() const { return rotary_rows.size; }
};

/// Keys and values of one layer while documents are generated, [documents * max_length, kv heads * head_dim].
template <class T>
struct LayerCache {
  MatrixView<T> keys, values;
  VectorView<const std::int64_t> lengths;  ///< [documents], the new tokens included; in host memory
  std::int64_t max_length = 0;
};

/// How the heads lie on the tensor-parallel ranks. Rank r holds num_heads / tp query heads and the key/value heads that
/// they read: num_kv_heads / tp of them, or, when tp exceeds num_kv_heads, one that tp / num_kv_heads consecutive ranks
/// hold alike.
struct HeadPartition {
  Range heads, kv_heads;
  int kv_replicas = 1;          ///< ranks that hold the same kv heads
  bool counts_kv_heads = true;  ///< this rank is the first of them

  /// Throws Error(kUsage) with the legal tensor sizes when heads do not divide over tp.
  [[nodiscard]] static HeadPartition make(const DecoderConfig& config, int tp_size, int tp_rank);
};

/// One block of the decoder: x + attention(norm(x)), then that + swiglu(norm(that)).
///
/// The MLP's output leaves the layer apart from the residual, so that the next norm adds it in its own pass.
///
/// Replicated key/value heads: each rank's d_k and d_v come from its own query heads alone. They are right as they are
/// for d_x, which is summed over all of tp; the gradients of k_proj and v_proj use their sum over the ranks that hold
/// the same head, made by one all-reduce per layer and micro-batch over `kv_group`. So all copies get the same bits,
/// `sum_over_tp` (a sum over the whole of tp, where other ranks hold other heads) stays false, and one copy is counted.
template <class T>
class DecoderLayer {
 public:
  /// What backward needs; views into the arena. `input` and `middle` are allocated by the caller, who must keep `input`
  /// alone when the rest will be recomputed. `selective`, set by the caller: forward keeps the outputs of products and
  /// of attention; what is marked (*), element by element from those, is empty behind it and made again in backward.
  struct Activations {
    bool selective = false;
    MatrixView<T> input;            ///< [local tokens, hidden], the residual at entry
    VectorView<float> input_rstd;   ///< (*) [local tokens]
    MatrixView<T> normed_input;     ///< (*) [tokens, hidden]
    MatrixView<T> qkv;              ///< [tokens, q + k + v]; q and k are rotated in place when there are no q/k norms
    MatrixView<T> rotated_qk;       ///< (*) [tokens, q + k], normed and rotated; only with q/k norms
    MatrixView<float> qk_rstd;      ///< (*) [tokens, heads + kv heads]; only with q/k norms
    MatrixView<T> attended;         ///< [tokens, q]
    MatrixView<float> log_sum_exp;  ///< [tokens, heads]
    MatrixView<T> middle;           ///< [local tokens, hidden], the residual between attention and MLP
    VectorView<float> middle_rstd;  ///< (*) [local tokens]
    MatrixView<T> normed_middle;    ///< (*) [tokens, hidden]
    MatrixView<T> gate_up;          ///< [tokens, 2 ffn of this rank]
    MatrixView<T> product;          ///< (*) [tokens, ffn of this rank], silu(gate) up

    void forget_marked();
  };

  /// `lora` adapts the projections that it names; `parameters` are frozen then.
  DecoderLayer(const DecoderConfig& config, std::int64_t index, int tp_size, int tp_rank, bool sequence_parallel,
               ParameterSet<T>& parameters, const Lora<T>& lora = {});

  /// The parameters of this layer that train are [first_parameter, end_parameter) of their set.
  [[nodiscard]] std::int64_t first_parameter() const { return first_parameter_; }
  [[nodiscard]] std::int64_t end_parameter() const { return end_parameter_; }
  [[nodiscard]] std::int64_t kv_size() const { return shape_.num_kv_heads * shape_.head_dim; }

  /// activations.input = residual + branch, or residual itself without a branch. The layer's output is
  /// activations.middle + mlp_output, both [local tokens, hidden]; `branch` may be `mlp_output`.
  void forward(const Context& context, const DocumentPositions& documents, MatrixView<T> residual, MatrixView<T> branch,
               Activations& activations, MatrixView<T> mlp_output, const LayerCache<T>* cache = nullptr) const;
  /// Makes everything but `input` again, with the same bits; the MLP's output is not needed and not made.
  void recompute(const Context& context, const DocumentPositions& documents, Activations& activations) const;
  /// d_residual [local tokens, hidden]: gradient of the layer's output on entry, of its input on return. Selective
  /// activations cost two all-gathers more with sequence parallelism, of both norms' outputs, and nothing without.
  void backward(const Context& context, const DocumentPositions& documents, const Activations& activations,
                Communicator* kv_group, MatrixView<T> d_residual) const;

 private:
  void attention_block(const Context& context, const DocumentPositions& documents, Activations& activations,
                       const LayerCache<T>* cache) const;
  void make_normed_input(const Context& context, std::int64_t tokens, MatrixView<T> residual, MatrixView<T> branch,
                         Activations& activations) const;
  void make_normed_middle(const Context& context, std::int64_t tokens, Activations& activations) const;
  void make_product(const Context& context, Activations& activations) const;
  void norm(const Context& context, MatrixView<T> residual, MatrixView<T> branch, MatrixView<T> sum,
            std::int64_t weight, MatrixView<T> normed, VectorView<float> rstd) const;
  void rotate(const Context& context, const DocumentPositions& documents, Activations& activations) const;
  void attend(const Context& context, const DocumentPositions& documents, Activations& activations,
              const LayerCache<T>* cache) const;
  void backward_mlp(const Context& context, Activations& activations, MatrixView<T> d_residual) const;
  void backward_attention(const Context& context, const DocumentPositions& documents, Activations& activations,
                          Communicator* kv_group, MatrixView<T> d_residual) const;
  void backward_norm(const Context& context, MatrixView<const T> input, std::int64_t weight,
                     VectorView<const float> rstd, MatrixView<T> d_normed, MatrixView<T> d_residual) const;
  void sum_kv_gradients(const Context& context, Communicator& kv_group, MatrixView<T> d_qkv) const;

  [[nodiscard]] VectorView<const T> vector_value(std::int64_t index) const { return parameters_->value(index).flat(); }

  ParameterSet<T>* parameters_;
  AttentionShape shape_;
  std::int64_t hidden_size_, ffn_size_;
  float norm_eps_;
  // In the order in which they declare their parameters.
  std::int64_t first_parameter_, input_norm_;
  ColumnParallelLinear<T> qkv_;
  RowParallelLinear<T> attention_out_;
  std::int64_t q_norm_, k_norm_, middle_norm_;
  ColumnParallelLinear<T> gate_up_;
  RowParallelLinear<T> down_;
  std::int64_t end_parameter_;
};

}  // namespace reprise
