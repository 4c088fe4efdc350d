#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/dtype.hpp"
#include "core/view.hpp"

namespace reprise {

/// One Hugging Face tensor as this tensor-parallel rank sees it. Vectors are [n, 1].
struct ParameterSpec {
  std::string name;   ///< Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  std::string layer;  ///< group of angle_scope "layer": "embedding", "layers.0", "norm", "head"
  std::int64_t global_rows = 0, global_cols = 0;
  /// The half-open block of the global tensor that this rank holds.
  std::int64_t row_begin = 0, row_end = 0, col_begin = 0, col_end = 0;
  bool is_vector = false;    ///< written to safetensors as shape [n]
  bool decay = true;         ///< weight decay applies (not on norms and biases)
  bool counted = true;       ///< this rank counts the block in norms and angles (false on all but one of its copies)
  bool sum_over_tp = false;  ///< copies whose gradients are partial sums: added over tp once a step, before dp
  bool frozen = false;       ///< never updated, no optimizer state
  bool joins_next = false;   ///< no bucket border behind it: it is multiplied with the next one as one matrix

  [[nodiscard]] std::int64_t rows() const { return row_end - row_begin; }
  [[nodiscard]] std::int64_t cols() const { return col_end - col_begin; }
  [[nodiscard]] std::int64_t size() const { return rows() * cols(); }
  [[nodiscard]] std::int64_t global_size() const { return global_rows * global_cols; }
};

/// Where parameter i lies in the flat buffers.
struct ParameterSlot {
  std::int64_t begin = 0, end = 0;  ///< elements
};

/// A contiguous range of the flat buffers that is reduced, updated and gathered as one.
struct Bucket {
  std::int64_t begin = 0, end = 0;  ///< elements; end - begin is a multiple of 16 * shard_count
  bool sum_over_tp = false;
};

struct FlatLayout {
  std::vector<ParameterSlot> slots;  ///< by parameter index
  std::vector<Bucket> buckets;       ///< tile [0, size) in order; a parameter lies in exactly one bucket
  std::int64_t size = 0;             ///< elements, padding included
};

/// Lays parameters out in declaration order, those with sum_over_tp behind all others in buckets of their own. A bucket
/// closes once it holds bucket_elements, but not behind a parameter with joins_next; its end is padded so that
/// `shard_count` equal shards are 64-byte aligned. Slots start at multiples of 16 elements. Padding elements are zero
/// for ever and belong to no group.
[[nodiscard]] FlatLayout make_flat_layout(const std::vector<ParameterSpec>& specs, std::int64_t bucket_elements,
                                          std::int64_t shard_count);

/// The parameters of a model: declared by the layers, then allocated once as one flat value buffer of type T and one
/// flat float32 gradient buffer.
template <class T>
class ParameterSet {
 public:
  /// Declares a parameter; returns its index. Only before `allocate`. Throws kInternal for a repeated name.
  std::int64_t add(ParameterSpec spec);

  /// Allocates zeroed values and (unless `values_only`) gradients. `shard_count` is the data-parallel size.
  void allocate(const Stream& stream, std::int64_t bucket_elements, std::int64_t shard_count, bool values_only = false);

  [[nodiscard]] std::int64_t count() const { return static_cast<std::int64_t>(specs_.size()); }
  [[nodiscard]] const std::vector<ParameterSpec>& specs() const { return specs_; }
  [[nodiscard]] const ParameterSpec& spec(std::int64_t index) const { return specs_[static_cast<std::size_t>(index)]; }
  /// Index of a name, or -1.
  [[nodiscard]] std::int64_t find(const std::string& name) const;
  [[nodiscard]] const FlatLayout& layout() const { return layout_; }
  /// The stream that `allocate` was given: its device holds the values.
  [[nodiscard]] const Stream& stream() const { return stream_; }

  /// False before `allocate` and where only values were allocated: these parameters are frozen, layers compute no
  /// gradient of theirs.
  [[nodiscard]] bool has_gradients() const { return gradients_.size() > 0; }

  /// [rows, cols] of this rank's block.
  [[nodiscard]] MatrixView<T> value(std::int64_t index);
  [[nodiscard]] MatrixView<float> gradient(std::int64_t index);
  [[nodiscard]] VectorView<T> values() { return values_.view(); }
  [[nodiscard]] VectorView<float> gradients() { return gradients_.view(); }
  /// Zeroes the gradients of [begin, end) and gives whole pages back to the system (ZeRO 2).
  void discard_gradients(std::int64_t begin, std::int64_t end);

 private:
  std::vector<ParameterSpec> specs_;
  FlatLayout layout_;
  Stream stream_{CpuStream{}};
  Buffer<T> values_;
  Buffer<float> gradients_;
};

}  // namespace reprise
