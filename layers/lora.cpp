#include "layers/lora.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/gemm.hpp"
#include "core/random.hpp"
#include "core/transfer.hpp"
#include "layers/copy_columns.hpp"
#include "layers/joined_parameters.hpp"

namespace reprise {

namespace {

std::string last_part(const std::string& name) {
  return name.substr(name.rfind('.') + 1);
}

bool is_a(const ParameterSpec& spec) {
  return spec.name.ends_with(".lora_A.weight");
}

}  // namespace

const std::vector<std::string>& lora_target_names() {
  static const std::vector<std::string> names = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                 "gate_proj", "up_proj", "down_proj"};
  return names;
}

float LoraOptions::scale() const {
  const auto r = static_cast<double>(rank);
  return static_cast<float>(alpha / (rslora ? std::sqrt(r) : r));
}

template <class T>
bool Lora<T>::adapts(const std::string& name) const {
  const auto& targets = options.targets;
  return parameters != nullptr && options.rank > 0 &&
         std::find(targets.begin(), targets.end(), last_part(name)) != targets.end();
}

template <class T>
LoraAdapters<T>::LoraAdapters(const Lora<T>& lora, const std::string& layer, const std::vector<LoraPart>& parts)
    : parameters_(lora.parameters), rank_(lora.options.rank), scale_(rank_ > 0 ? lora.options.scale() : 0.0f) {
  const auto spec_of = [&](const LoraPart& part, const LoraShare& share, const char* factor) {
    ParameterSpec spec;
    spec.name = part.name + factor;
    spec.layer = layer;
    spec.counted = share.counted;
    spec.sum_over_tp = share.sum_over_tp;
    return spec;
  };
  const auto adapted = static_cast<std::size_t>(
      std::count_if(parts.begin(), parts.end(), [&](const LoraPart& part) { return lora.adapts(part.name); }));
  for (const LoraPart& part : parts) {
    if (!lora.adapts(part.name)) continue;
    ParameterSpec spec = spec_of(part, part.a, ".lora_A.weight");
    spec.global_rows = spec.row_end = rank_;
    spec.global_cols = part.global_cols;
    spec.col_begin = part.a.range.begin;
    spec.col_end = part.a.range.end;
    spec.joins_next = a_.size() + 1 < adapted;
    a_.push_back(parameters_->add(spec));
  }
  std::int64_t output = 0, next = 0;
  for (const LoraPart& part : parts) {
    output = next;
    next += part.b.range.size();
    if (!lora.adapts(part.name)) continue;
    ParameterSpec spec = spec_of(part, part.b, ".lora_B.weight");
    spec.global_rows = part.global_rows;
    spec.row_begin = part.b.range.begin;
    spec.row_end = part.b.range.end;
    spec.global_cols = spec.col_end = rank_;
    b_.push_back(parameters_->add(spec));
    outputs_.push_back(output);
  }
}

template <class T>
bool LoraAdapters<T>::is_whole(std::int64_t out) const {
  return b_.size() == 1 && parameters_->spec(b_.front()).rows() == out;
}

template <class T>
MatrixView<const T> LoraAdapters<T>::a(const Stream& stream, Arena& arena) const {
  return joined_value(stream, arena, *parameters_, a_, total_rank(), parameters_->spec(a_.front()).cols());
}

/// [out, R]; where one matrix is the whole layer, its B itself.
template <class T>
MatrixView<const T> LoraAdapters<T>::b(const Stream& stream, Arena& arena, std::int64_t out) const {
  if (is_whole(out)) return parameters_->value(b_.front());
  const MatrixView<T> diagonal = arena.matrix<T>(out, total_rank(), "joined adapters");
  zero(stream, diagonal.flat());
  for (std::size_t i = 0; i < b_.size(); ++i) {
    const MatrixView<const T> part = parameters_->value(b_[i]);
    copy_columns<T>(stream, part, 0, diagonal.row_range(outputs_[i], part.rows), static_cast<std::int64_t>(i) * rank_,
                    rank_);
  }
  return diagonal;
}

template <class T>
MatrixView<T> LoraAdapters<T>::project(const Stream& stream, Arena& arena, MatrixView<const T> x) const {
  const MatrixView<T> u = arena.matrix<T>(x.rows, total_rank(), "adapters' inner activations");
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, 1.0f, x, a(stream, arena), 0.0f, u);
  return u;
}

template <class T>
void LoraAdapters<T>::add_output(const Stream& stream, Arena& arena, MatrixView<const T> x, MatrixView<T> y) const {
  if (empty()) return;
  const Arena::Scope scope(arena);
  const MatrixView<const T> u = project(stream, arena, x);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kYes, scale_, u, b(stream, arena, y.cols), 1.0f, y);
}

template <class T>
void LoraAdapters<T>::backward_input(const Stream& stream, Arena& arena, MatrixView<const T> d_y, MatrixView<const T> x,
                                     MatrixView<T> d_x) const {
  if (empty()) return;
  const Arena::Scope scope(arena);
  const MatrixView<T> d_u = arena.matrix<T>(d_y.rows, total_rank(), "gradient of adapters' inner activations");
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, scale_, d_y, b(stream, arena, d_y.cols), 0.0f, d_u);
  gemm<T, T>(stream, Transpose::kNo, Transpose::kNo, 1.0f, d_u, a(stream, arena), 1.0f, d_x);
  accumulate_joined_gradient<T>(stream, arena, d_u, x, *parameters_, a_);
}

template <class T>
void LoraAdapters<T>::backward_output(const Stream& stream, Arena& arena, MatrixView<const T> d_y,
                                      MatrixView<const T> x) const {
  if (empty()) return;
  const Arena::Scope scope(arena);
  const MatrixView<const T> u = project(stream, arena, x);
  if (is_whole(d_y.cols)) {
    gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, scale_, d_y, u, 1.0f, parameters_->gradient(b_.front()));
    return;
  }
  const MatrixView<float> all = arena.matrix<float>(d_y.cols, total_rank(), "gradient of joined adapters");
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, scale_, d_y, u, 0.0f, all);
  for (std::size_t i = 0; i < b_.size(); ++i) {
    const Arena::Scope part_scope(arena);
    const MatrixView<float> gradient = parameters_->gradient(b_[i]);
    const MatrixView<float> part = arena.matrix<float>(gradient.rows, gradient.cols, "gradient of an adapter");
    copy_columns<float>(stream, all.row_range(outputs_[i], part.rows), static_cast<std::int64_t>(i) * rank_, part, 0,
                        rank_);
    add<float, float>(stream, part.flat(), gradient.flat());
  }
}

template <class T>
void initialize_adapters(ParameterSet<T>& adapters, std::uint64_t seed) {
  for (std::int64_t index = 0; index < adapters.count(); ++index) {
    const ParameterSpec& spec = adapters.spec(index);
    std::vector<T> values(static_cast<std::size_t>(spec.size()), T(0.0f));
    if (is_a(spec)) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(spec.global_cols));
      const std::uint64_t key = hash_bytes(spec.name.data(), spec.name.size(), seed);
      auto value = values.begin();
      for (std::int64_t row = spec.row_begin; row < spec.row_end; ++row) {
        for (std::int64_t col = spec.col_begin; col < spec.col_end; ++col) {
          const double uniform = random_uniform(key, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(col));
          *value++ = T(static_cast<float>(bound * (2.0 * uniform - 1.0)));
        }
      }
    }
    copy_to_device<T>(adapters.stream(), values, adapters.value(index).flat());
  }
}

void merge_adapters(const Stream& stream, ParameterSet<float>& adapters, const LoraOptions& options,
                    ParameterSet<float>& parameters) {
  for (std::int64_t index = 0; index < adapters.count(); ++index) {
    const ParameterSpec& spec = adapters.spec(index);
    if (!is_a(spec)) continue;
    const std::string module = spec.name.substr(0, spec.name.rfind(".lora_A"));
    const std::int64_t w = parameters.find(module + ".weight"), b = adapters.find(module + ".lora_B.weight");
    REPRISE_CHECK(w >= 0 && b >= 0, "{} has no matrix beside it", spec.name);
    gemm<float, float>(stream, Transpose::kNo, Transpose::kNo, options.scale(), adapters.value(b),
                       adapters.value(index), 1.0f, parameters.value(w));
  }
}

#define REPRISE_INSTANTIATE(T)    \
  template struct Lora<T>;        \
  template class LoraAdapters<T>; \
  template void initialize_adapters<T>(ParameterSet<T>&, std::uint64_t);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
