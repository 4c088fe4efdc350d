#include "core/parameter.hpp"

#include <utility>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kAlignment = 16;  // elements: 64 bytes of float32

/// Lays out the parameters with the given sum_over_tp behind what the layout already holds.
void append_buckets(const std::vector<ParameterSpec>& specs, bool sum_over_tp, std::int64_t bucket_elements,
                    std::int64_t shard_count, FlatLayout& layout) {
  std::int64_t begin = layout.size, end = layout.size;
  const auto close = [&] {
    if (end == begin) return;
    end = begin + round_up(end - begin, kAlignment * shard_count);
    layout.buckets.push_back({begin, end, sum_over_tp});
    begin = end;
  };
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].sum_over_tp != sum_over_tp) continue;
    layout.slots[i] = {end, end + specs[i].size()};
    end = round_up(layout.slots[i].end, kAlignment);
    if (end - begin >= bucket_elements && !specs[i].joins_next) close();
  }
  close();
  layout.size = end;
}

}  // namespace

FlatLayout make_flat_layout(const std::vector<ParameterSpec>& specs, std::int64_t bucket_elements,
                            std::int64_t shard_count) {
  REPRISE_CHECK(bucket_elements > 0 && shard_count > 0, "buckets of {} elements in {} shards", bucket_elements,
                shard_count);
  FlatLayout layout;
  layout.slots.resize(specs.size());
  append_buckets(specs, false, bucket_elements, shard_count, layout);
  append_buckets(specs, true, bucket_elements, shard_count, layout);
  return layout;
}

template <class T>
std::int64_t ParameterSet<T>::add(ParameterSpec spec) {
  REPRISE_CHECK(layout_.slots.empty(), "{} is declared after the parameters were allocated", spec.name);
  REPRISE_CHECK(find(spec.name) < 0, "{} is declared twice", spec.name);
  REPRISE_CHECK(0 <= spec.row_begin && spec.row_begin <= spec.row_end && spec.row_end <= spec.global_rows &&
                    0 <= spec.col_begin && spec.col_begin <= spec.col_end && spec.col_end <= spec.global_cols,
                "{}: rows [{}, {}) and columns [{}, {}) of a tensor of [{}, {}]", spec.name, spec.row_begin,
                spec.row_end, spec.col_begin, spec.col_end, spec.global_rows, spec.global_cols);
  specs_.push_back(std::move(spec));
  return count() - 1;
}

template <class T>
void ParameterSet<T>::allocate(const Stream& stream, std::int64_t bucket_elements, std::int64_t shard_count,
                               bool values_only) {
  REPRISE_CHECK(layout_.slots.empty(), "the parameters are allocated already");
  layout_ = make_flat_layout(specs_, bucket_elements, shard_count);
  stream_ = stream;
  values_ = Buffer<T>(stream, layout_.size, "the parameters");
  if (!values_only) gradients_ = Buffer<float>(stream, layout_.size, "the gradients");
}

template <class T>
std::int64_t ParameterSet<T>::find(const std::string& name) const {
  for (std::int64_t i = 0; i < count(); ++i) {
    if (spec(i).name == name) return i;
  }
  return -1;
}

template <class T>
MatrixView<T> ParameterSet<T>::value(std::int64_t index) {
  const ParameterSlot& slot = layout_.slots.at(static_cast<std::size_t>(index));
  return {values_.view().data + slot.begin, spec(index).rows(), spec(index).cols()};
}

template <class T>
MatrixView<float> ParameterSet<T>::gradient(std::int64_t index) {
  const ParameterSlot& slot = layout_.slots.at(static_cast<std::size_t>(index));
  REPRISE_CHECK(gradients_.size() == layout_.size, "{} has no gradient: only values were allocated", spec(index).name);
  return {gradients_.view().data + slot.begin, spec(index).rows(), spec(index).cols()};
}

template <class T>
void ParameterSet<T>::discard_gradients(std::int64_t begin, std::int64_t end) {
  REPRISE_CHECK(0 <= begin && begin <= end && end <= gradients_.size(), "gradients [{}, {}) of {}", begin, end,
                gradients_.size());
  gradients_.discard(begin, end);
}

template class ParameterSet<float>;
template class ParameterSet<BFloat16>;

}  // namespace reprise
