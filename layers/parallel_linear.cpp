#include "layers/parallel_linear.hpp"

#include <algorithm>

#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/column_sum.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void add_bias_rows(const float* bias, float* y, std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void add_bias_rows(const std::uint16_t* bias, std::uint16_t* y, std::int64_t rows,
                                        std::int64_t cols))
REPRISE_SIMD_DECLARE(void sum_bias_rows(const float* d_y, float* d_bias, std::int64_t rows, std::int64_t cols))
REPRISE_SIMD_DECLARE(void sum_bias_rows(const std::uint16_t* d_y, float* d_bias, std::int64_t rows, std::int64_t cols))

namespace {

template <class T>
void add_bias_to(const CpuStream& stream, VectorView<const T> bias, MatrixView<T> y) {
  stream.parallel_for(y.rows, kColumnSumRows, [&](std::int64_t begin, std::int64_t end) {
    REPRISE_SIMD_CALL(add_bias_rows, simd_pointer(bias.data), simd_pointer(y.row(begin).data), end - begin, y.cols);
  });
}

template <class T>
void accumulate_bias(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y, VectorView<float> d_bias) {
  accumulate_column_sum(stream, arena, d_y.rows, d_bias, [&](std::int64_t begin, std::int64_t end, float* partial) {
    REPRISE_SIMD_CALL(sum_bias_rows, simd_pointer(d_y.row(begin).data), partial, end - begin, d_y.cols);
  });
}

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
MatrixView<const T> ColumnParallelLinear<T>::weight(Arena& arena) const {
  if (are_adjacent(*parameters_, weights_)) {
    return {parameters_->value(weights_.front()).data, out_features_, in_features_};
  }
  const MatrixView<T> joined = arena.matrix<T>(out_features_, in_features_, "joined weights");
  T* to = joined.data;
  for (const std::int64_t index : weights_) {
    const VectorView<T> part = parameters_->value(index).flat();
    to = std::copy(part.begin(), part.end(), to);
  }
  return joined;
}

template <class T>
void ColumnParallelLinear<T>::forward(const CpuStream& stream, Arena& arena, MatrixView<const T> x,
                                      MatrixView<T> y) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, weight(arena), 0.0f, y);
  if (biases_.empty()) return;
  const VectorView<T> joined = arena.vector<T>(out_features_, "joined biases");
  T* to = joined.data;
  for (const std::int64_t index : biases_) {
    const VectorView<T> part = parameters_->value(index).flat();
    to = std::copy(part.begin(), part.end(), to);
  }
  add_bias_to<T>(stream, joined, y);
}

template <class T>
void ColumnParallelLinear<T>::backward_input(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y,
                                             MatrixView<T> d_x) const {
  const Arena::Scope scope(arena);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, weight(arena), 0.0f, d_x);
}

template <class T>
void ColumnParallelLinear<T>::backward_weight(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y,
                                              MatrixView<const T> x) const {
  const Arena::Scope scope(arena);
  if (are_adjacent(*parameters_, weights_)) {
    const MatrixView<float> gradient(parameters_->gradient(weights_.front()).data, out_features_, in_features_);
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, gradient);
  } else {
    const MatrixView<float> joined = arena.matrix<float>(out_features_, in_features_, "joined gradients");
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 0.0f, joined);
    std::int64_t begin = 0;
    for (const std::int64_t index : weights_) {
      const VectorView<float> gradient = parameters_->gradient(index).flat();
      add<float, float>(stream, joined.flat().slice(begin, gradient.size), gradient);
      begin += gradient.size;
    }
  }
  if (biases_.empty()) return;
  const VectorView<float> sums = arena.vector<float>(out_features_, "bias gradients");
  std::fill(sums.begin(), sums.end(), 0.0f);
  accumulate_bias(stream, arena, d_y, sums);
  std::int64_t begin = 0;
  for (const std::int64_t index : biases_) {
    const VectorView<float> gradient = parameters_->gradient(index).flat();
    for (std::int64_t i = 0; i < gradient.size; ++i) gradient[i] += sums[begin + i];
    begin += gradient.size;
  }
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
void RowParallelLinear<T>::forward(const CpuStream& stream, MatrixView<const T> x, MatrixView<T> y) const {
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, parameters_->value(weight_), 0.0f, y);
}

template <class T>
void RowParallelLinear<T>::add_bias(const CpuStream& stream, MatrixView<T> y) const {
  if (bias_ >= 0) add_bias_to<T>(stream, parameters_->value(bias_).flat(), y);
}

template <class T>
void RowParallelLinear<T>::backward(const CpuStream& stream, MatrixView<const T> d_y, MatrixView<const T> x,
                                    MatrixView<T> d_x) const {
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, d_y, x, 1.0f, parameters_->gradient(weight_));
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_y, parameters_->value(weight_), 0.0f, d_x);
}

template <class T>
void RowParallelLinear<T>::backward_bias(const CpuStream& stream, Arena& arena, MatrixView<const T> d_y) const {
  if (bias_ >= 0) accumulate_bias(stream, arena, d_y, parameters_->gradient(bias_).flat());
}

template class ColumnParallelLinear<float>;
template class ColumnParallelLinear<BFloat16>;
template class RowParallelLinear<float>;
template class RowParallelLinear<BFloat16>;

}  // namespace reprise
