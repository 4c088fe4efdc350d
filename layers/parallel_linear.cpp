#include "layers/parallel_linear.hpp"

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/transfer.hpp"
#include "layers/bias.hpp"

namespace reprise {

namespace {

/// True when the blocks of these parameters follow each other without a gap.
template <class T>
bool are_adjacent(const ParameterSet<T>& parameters, const std::vector<std::int64_t>& indices) {
  const auto& slots = parameters.layout().slots;
  for (std::size_t i = 0; i + 1 < indices.size(); ++i) {
    const auto here = static_cast<std::size_t>(indices[i]), next = static_cast<std::size_t>(indices[i + 1]);
    if (slots[here].begin + parameters.spec(indices[i]).size() != slots[next].begin) return false;
  }
  return true;
}

/// The values of these parameters, copied one behind the other.
template <class T>
void join(const Stream& stream, ParameterSet<T>& parameters, const std::vector<std::int64_t>& indices,
          VectorView<T> joined) {
  std::int64_t begin = 0;
  for (const std::int64_t index : indices) {
    const VectorView<const T> part = parameters.value(index).flat();
    copy_on_device<T>(stream, part, joined.slice(begin, part.size));
    begin += part.size;
  }
}

/// Adds what stands one behind the other in `joined` to the gradients of these parameters.
template <class T>
void add_to_gradients(const Stream& stream, VectorView<const float> joined, ParameterSet<T>& parameters,
                      const std::vector<std::int64_t>& indices) {
  std::int64_t begin = 0;
  for (const std::int64_t index : indices) {
    const VectorView<float> gradient = parameters.gradient(index).flat();
    add<float, float>(stream, joined.slice(begin, gradient.size), gradient);
    begin += gradient.size;
  }
}

}  // namespace

template <class T>
ColumnParallelLinear<T>::ColumnParallelLinear(ParameterSet<T>& parameters, const std::string& layer,
                                              std::int64_t in_features, const std::vector<ColumnPart>& parts,
                                              bool has_bias)
    : parameters_(&parameters), in_features_(in_features) {
  const auto spec_of = [&](const ColumnPart& part) {
    ParameterSpec spec;
    spec.layer = layer;
    spec.global_rows = part.global_rows;
    spec.row_begin = part.rows.begin;
    spec.row_end = part.rows.end;
    spec.counted = part.counted;
    return spec;
  };
  for (const ColumnPart& part : parts) {
    ParameterSpec spec = spec_of(part);
    spec.name = part.name + ".weight";
    spec.global_cols = spec.col_end = in_features;
    weights_.push_back(parameters.add(spec));
    out_features_ += part.rows.size();
  }
  for (const ColumnPart& part : parts) {
    if (!has_bias) break;
    ParameterSpec spec = spec_of(part);
    spec.name = part.name + ".bias";
    spec.global_cols = spec.col_end = 1;
    spec.is_vector = true;
    spec.decay = false;
    biases_.push_back(parameters.add(spec));
  }
}

template <class T>
MatrixView<const T> ColumnParallelLinear<T>::weight(const Stream& stream, Arena& arena) const {
  if (are_adjacent(*parameters_, weights_)) {
    return {parameters_->value(weights_.front()).data, out_features_, in_features_};
  }
  const MatrixView<T> joined = arena.matrix<T>(out_features_, in_features_, "joined weights");
  join(stream, *parameters_, weights_, joined.flat());
  return joined;
}

template <class T>
void ColumnParallelLinear<T>::forward(const Stream& stream, Arena& arena, MatrixView<const T> x,
                                      MatrixView<T> y) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, weight(stream, arena), 0.0f, y);
  if (biases_.empty()) return;
  const VectorView<T> joined = arena.vector<T>(out_features_, "joined biases");
  join(stream, *parameters_, biases_, joined);
  reprise::add_bias<T>(stream, joined, y);
}

template <class T>
void ColumnParallelLinear<T>::backward_input(const Stream& stream, Arena& arena, MatrixView<const T> d_y,
                                             MatrixView<T> d_x) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, weight(stream, arena), 0.0f, d_x);
}

template <class T>
void ColumnParallelLinear<T>::backward_weight(const Stream& stream, Arena& arena, MatrixView<const T> d_y,
                                              MatrixView<const T> x) const {
  const Arena::Scope scope(arena);
  if (are_adjacent(*parameters_, weights_)) {
    const MatrixView<float> gradient(parameters_->gradient(weights_.front()).data, out_features_, in_features_);
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, gradient);
  } else {
    const MatrixView<float> joined = arena.matrix<float>(out_features_, in_features_, "joined gradients");
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 0.0f, joined);
    add_to_gradients(stream, joined.flat(), *parameters_, weights_);
  }
  if (biases_.empty()) return;
  const VectorView<float> sums = arena.vector<float>(out_features_, "bias gradients");
  zero(stream, sums);
  accumulate_bias_gradient<T>(stream, arena, d_y, sums);
  add_to_gradients(stream, sums, *parameters_, biases_);
}

template <class T>
RowParallelLinear<T>::RowParallelLinear(ParameterSet<T>& parameters, const std::string& layer, const std::string& name,
                                        std::int64_t out_features, std::int64_t global_in_features, Range cols,
                                        bool has_bias, bool counts_replicas, bool sum_bias_over_tp)
    : parameters_(&parameters) {
  ParameterSpec spec;
  spec.name = name + ".weight";
  spec.layer = layer;
  spec.global_rows = spec.row_end = out_features;
  spec.global_cols = global_in_features;
  spec.col_begin = cols.begin;
  spec.col_end = cols.end;
  weight_ = parameters.add(spec);
  if (!has_bias) return;
  spec.name = name + ".bias";
  spec.global_cols = spec.col_end = 1;
  spec.col_begin = 0;
  spec.is_vector = true;
  spec.decay = false;
  spec.counted = counts_replicas;
  spec.sum_over_tp = sum_bias_over_tp;
  bias_ = parameters.add(spec);
}

template <class T>
void RowParallelLinear<T>::forward(const Stream& stream, MatrixView<const T> x, MatrixView<T> y) const {
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, parameters_->value(weight_), 0.0f, y);
}

template <class T>
void RowParallelLinear<T>::add_bias(const Stream& stream, MatrixView<T> y) const {
  if (bias_ >= 0) reprise::add_bias<T>(stream, parameters_->value(bias_).flat(), y);
}

template <class T>
void RowParallelLinear<T>::backward(const Stream& stream, MatrixView<const T> d_y, MatrixView<const T> x,
                                    MatrixView<T> d_x) const {
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, parameters_->gradient(weight_));
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, parameters_->value(weight_), 0.0f, d_x);
}

template <class T>
void RowParallelLinear<T>::backward_bias(const Stream& stream, Arena& arena, MatrixView<const T> d_y) const {
  if (bias_ >= 0) accumulate_bias_gradient<T>(stream, arena, d_y, parameters_->gradient(bias_).flat());
}

template class ColumnParallelLinear<float>;
template class ColumnParallelLinear<BFloat16>;
template class RowParallelLinear<float>;
template class RowParallelLinear<BFloat16>;

}  // namespace reprise
