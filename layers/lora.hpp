#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.hpp"
#include "core/parameter.hpp"
#include "core/stream.hpp"
#include "parallel/shard.hpp"

namespace reprise {

// Low-rank adapters (LoRA, arXiv 2106.09685): beside a frozen projection W [out, in] two small matrices A [r, in] and
// B [out, r] are trained, y = x W^T + s (x A^T) B^T with s = alpha / r.

/// The projections that may be adapted, by the last part of their Hugging Face names.
[[nodiscard]] const std::vector<std::string>& lora_target_names();

struct LoraOptions {
  std::int64_t rank = 0;  ///< 0 = no adapters
  double alpha = 16.0;
  bool rslora = false;               ///< s = alpha / sqrt(r) (arXiv 2312.03732)
  std::vector<std::string> targets;  ///< of lora_target_names()

  [[nodiscard]] float scale() const;
};

/// Where adapters are declared: in a set of their own, because the set of a frozen base has no gradients.
template <class T>
struct Lora {
  LoraOptions options;
  ParameterSet<T>* parameters = nullptr;  ///< null = no adapters
  /// Of the factor that every tensor-parallel rank holds whole; DecoderModel sets them.
  bool counts_replicas = true;  ///< this rank counts it
  bool sums_replicas = false;   ///< its gradients are partial sums: there is more than one rank

  /// `name`: "model.layers.0.self_attn.q_proj".
  [[nodiscard]] bool adapts(const std::string& name) const;
};

/// What a rank holds of one factor of an adapter.
struct LoraShare {
  Range range;               ///< columns of A, rows of B
  bool counted = true;       ///< false on all but one of the ranks that hold the same
  bool sum_over_tp = false;  ///< its gradient is a partial sum over ranks
};

/// A matrix of a linear layer as its adapter sees it.
struct LoraPart {
  std::string name;  ///< without ".weight"
  std::int64_t global_rows = 0, global_cols = 0;
  LoraShare a, b;
};

/// The adapters of one linear layer, which may hold several matrices that read the same x: their A stand one behind the
/// other, A [R, in] with R = r times the adapted matrices, their B on the diagonal of one B [out, R]. So every product
/// is one GEMM over all of them; B's zeros cost R / in of the layer's own work.
///
/// Nothing here communicates: every result is of the same kind (whole, or this rank's part of a sum over tp) as that of
/// the frozen matrix beside it, and joins it before the layer's own collective. What each rank holds of a
///   column-parallel matrix: A whole (its gradient is a partial sum), B's rows as W's;
///   row-parallel matrix:    A's columns as W's, B whole (its gradient is a partial sum).
/// u = x A^T is made again in backward: it costs R / out of the forward pass and saves keeping it.
template <class T>
class LoraAdapters {
 public:
  /// `parts`: all matrices of the layer, in the order of y's columns; those that are not adapted take their place.
  /// Declares "<name>.lora_A.weight" of every adapted one, then their "<name>.lora_B.weight", in lora.parameters.
  LoraAdapters(const Lora<T>& lora, const std::string& layer, const std::vector<LoraPart>& parts);

  [[nodiscard]] bool empty() const { return a_.empty(); }

  /// y += s (x A^T) B^T. x [tokens, in], y [tokens, out of this rank].
  void add_output(const Stream& stream, Arena& arena, MatrixView<const T> x, MatrixView<T> y) const;
  /// With d_u = s d_y B: d_x += d_u A, d_A += d_u^T x.
  void backward_input(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                      MatrixView<T> d_x) const;
  /// d_B += s d_y^T (x A^T).
  void backward_output(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x) const;

 private:
  [[nodiscard]] std::int64_t total_rank() const { return rank_ * static_cast<std::int64_t>(a_.size()); }
  [[nodiscard]] MatrixView<const T> a(const Stream& stream, Arena& arena) const;
  [[nodiscard]] MatrixView<const T> b(const Stream& stream, Arena& arena, std::int64_t out) const;
  /// Whether the one adapted matrix makes all `out` columns of y.
  [[nodiscard]] bool is_whole(std::int64_t out) const;
  [[nodiscard]] MatrixView<T> project(const Stream& stream, Arena& arena, MatrixView<const T> x) const;

  ParameterSet<T>* parameters_;
  std::int64_t rank_;
  float scale_;
  std::vector<std::int64_t> a_, b_;    // parameter indices
  std::vector<std::int64_t> outputs_;  // first column of y of each adapted matrix
};

/// A uniform in +-1 / sqrt(in) (peft's Kaiming initialisation) and B zero, so that the adapted model starts as the
/// base. A value depends on (seed, name, global row, global column) only: every sharding starts alike.
template <class T>
void initialize_adapters(ParameterSet<T>& adapters, std::uint64_t seed);

/// W += s B A for every adapted W of `parameters`, in float32: the model that computes the same without adapters. Each
/// rank merges the block that it holds; no communication.
void merge_adapters(const Stream& stream, ParameterSet<float>& adapters, const LoraOptions& options,
                    ParameterSet<float>& parameters);

}  // namespace reprise
