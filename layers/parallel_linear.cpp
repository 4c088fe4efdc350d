#include "layers/parallel_linear.hpp"

#include "core/gemm.hpp"
#include "core/transfer.hpp"
#include "layers/bias.hpp"
#include "layers/joined_parameters.hpp"

namespace reprise {

namespace {

template <class T>
std::vector<LoraPart> adapted_parts(const std::vector<ColumnPart>& parts, std::int64_t in_features,
                                    const Lora<T>& lora) {
  std::vector<LoraPart> adapted;
  for (const ColumnPart& part : parts) {
    const LoraShare whole{{0, in_features}, lora.counts_replicas, lora.sums_replicas};
    adapted.push_back({part.name, part.global_rows, in_features, whole, {part.rows, part.counted, false}});
  }
  return adapted;
}

}  // namespace

template <class T>
ColumnParallelLinear<T>::ColumnParallelLinear(ParameterSet<T>& parameters, const std::string& layer,
                                              std::int64_t in_features, const std::vector<ColumnPart>& parts,
                                              bool has_bias, const Lora<T>& lora)
    : parameters_(&parameters),
      in_features_(in_features),
      adapters_(lora, layer, adapted_parts(parts, in_features, lora)) {
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
    spec.joins_next = &part != &parts.back();
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
  return joined_value(stream, arena, *parameters_, weights_, out_features_, in_features_);
}

template <class T>
void ColumnParallelLinear<T>::forward(const Stream& stream, Arena& arena, MatrixView<const T> x,
                                      MatrixView<T> y) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, weight(stream, arena), 0.0f, y);
  adapters_.add_output(stream, arena, x, y);
  if (biases_.empty()) return;
  const VectorView<T> joined = arena.vector<T>(out_features_, "joined biases");
  join(stream, *parameters_, biases_, joined);
  reprise::add_bias<T>(stream, joined, y);
}

template <class T>
void ColumnParallelLinear<T>::backward_input(const Stream& stream, Arena& arena, MatrixView<const T> d_y,
                                             MatrixView<const T> x, MatrixView<T> d_x) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, weight(stream, arena), 0.0f, d_x);
  adapters_.backward_input(stream, arena, d_y, x, d_x);
}

template <class T>
void ColumnParallelLinear<T>::backward_weight(const Stream& stream, Arena& arena, MatrixView<const T> d_y,
                                              MatrixView<const T> x) const {
  adapters_.backward_output(stream, arena, d_y, x);
  if (!parameters_->has_gradients()) return;
  const Arena::Scope scope(arena);
  accumulate_joined_gradient<T>(stream, arena, d_y, x, *parameters_, weights_);
  if (biases_.empty()) return;
  const VectorView<float> sums = arena.vector<float>(out_features_, "bias gradients");
  zero(stream, sums);
  accumulate_bias_gradient<T>(stream, arena, d_y, sums);
  add_to_gradients(stream, sums, *parameters_, biases_);
}

template <class T>
RowParallelLinear<T>::RowParallelLinear(ParameterSet<T>& parameters, const std::string& layer, const std::string& name,
                                        std::int64_t out_features, std::int64_t global_in_features, Range cols,
                                        bool has_bias, bool counts_replicas, bool sum_bias_over_tp, const Lora<T>& lora)
    : parameters_(&parameters),
      adapter_(lora, layer,
               {{name,
                 out_features,
                 global_in_features,
                 {cols, true, false},
                 {{0, out_features}, lora.counts_replicas, lora.sums_replicas}}}) {
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
void RowParallelLinear<T>::forward(const Stream& stream, Arena& arena, MatrixView<const T> x, MatrixView<T> y) const {
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, parameters_->value(weight_), 0.0f, y);
  adapter_.add_output(stream, arena, x, y);
}

template <class T>
void RowParallelLinear<T>::add_bias(const Stream& stream, MatrixView<T> y) const {
  if (bias_ >= 0) reprise::add_bias<T>(stream, parameters_->value(bias_).flat(), y);
}

template <class T>
void RowParallelLinear<T>::backward(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                                    MatrixView<T> d_x) const {
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, parameters_->value(weight_), 0.0f, d_x);
  adapter_.backward_input(stream, arena, d_y, x, d_x);
  adapter_.backward_output(stream, arena, d_y, x);
  if (!parameters_->has_gradients()) return;
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, parameters_->gradient(weight_));
}

template <class T>
void RowParallelLinear<T>::backward_bias(const Stream& stream, Arena& arena, MatrixView<const T> d_y) const {
  if (bias_ < 0 || !parameters_->has_gradients()) return;
  accumulate_bias_gradient<T>(stream, arena, d_y, parameters_->gradient(bias_).flat());
}

template class ColumnParallelLinear<float>;
template class ColumnParallelLinear<BFloat16>;
template class RowParallelLinear<float>;
template class RowParallelLinear<BFloat16>;

}  // namespace reprise
