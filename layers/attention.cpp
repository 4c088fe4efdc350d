#include "layers/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/error.hpp"
#include "core/math.hpp"
#include "core/simd_dispatch.hpp"
#include "layers/attention_block.hpp"
#include "layers/simd_storage.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void attention_head(const AttentionHead<float>& head))
REPRISE_SIMD_DECLARE(void attention_head(const AttentionHead<std::uint16_t>& head))
REPRISE_SIMD_DECLARE(void attention_head_backward(const AttentionHeadBackward<float>& head))
REPRISE_SIMD_DECLARE(void attention_head_backward(const AttentionHeadBackward<std::uint16_t>& head))

namespace {

constexpr std::int64_t kRowUnit = 16;  // packed rows are multiples of it, as in attention_simd.cpp

std::int64_t forward_scratch(std::int64_t keys, std::int64_t head_dim) {
  const std::int64_t padded = round_up(head_dim, kRowUnit);
  return round_up(keys, kKeyPanel) * (head_dim + padded) + kForwardQueries * (2 * padded + kForwardKeys + 2 * kRowUnit);
}

std::int64_t backward_scratch(std::int64_t tokens, std::int64_t head_dim) {
  const std::int64_t padded = round_up(head_dim, kRowUnit);
  return 5 * tokens * padded + round_up(tokens, kRowUnit) + kKeyPanel * (2 * head_dim + padded) +
         2 * kBackwardQueries * kKeyPanel;
}

/// work(unit, scratch) for every unit, each on some thread with that thread's scratch. Units are independent of each
/// other, so which thread takes which one does not change a bit.
template <class Work>
void for_each_unit(const CpuStream& stream, Arena& arena, std::int64_t units, std::int64_t scratch_floats,
                   const Work& work) {
  const Arena::Scope scope(arena);
  const std::int64_t slots = std::min<std::int64_t>(stream.num_threads(), units);
  const MatrixView<float> scratch = arena.matrix<float>(slots, round_up(scratch_floats, kRowUnit), "attention blocks");
  std::atomic<std::int64_t> next{0};
  stream.parallel_for(slots, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t slot = begin; slot < end; ++slot) {
      for (std::int64_t unit = next++; unit < units; unit = next++) work(unit, scratch.row(slot).data);
    }
  });
}

std::int64_t longest_document(VectorView<const std::int64_t> offsets) {
  std::int64_t longest = 0;
  for (std::int64_t d = 0; d + 1 < offsets.size; ++d) longest = std::max(longest, offsets[d + 1] - offsets[d]);
  return longest;
}

float score_scale(const AttentionShape& shape) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
}

void check_shape(const AttentionShape& shape) {
  REPRISE_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0, "{} heads over {} kv heads",
                shape.num_heads, shape.num_kv_heads);
}

}  // namespace

template <class T>
void attention(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
               VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
               HeadRows<T> output, MatrixView<float> log_sum_exp) {
  using S = SimdStorage<T>;
  check_shape(shape);
  REPRISE_CHECK(log_sum_exp.cols == shape.num_heads, "log_sum_exp has {} columns for {} heads", log_sum_exp.cols,
                shape.num_heads);
  const std::int64_t group = shape.num_heads / shape.num_kv_heads, dim = shape.head_dim;
  const std::int64_t units = std::max<std::int64_t>(0, offsets.size - 1) * shape.num_heads;
  const std::int64_t scratch_floats = forward_scratch(longest_document(offsets), dim);
  for_each_unit(stream, arena, units, scratch_floats, [&](std::int64_t unit, float* scratch) {
    const std::int64_t document = unit / shape.num_heads, head = unit % shape.num_heads;
    const std::int64_t begin = offsets[document], tokens = offsets[document + 1] - begin;
    if (tokens == 0) return;
    AttentionHead<S> args{};
    args.q = simd_pointer(q.data + begin * q.stride + head * dim);
    args.k = simd_pointer(k.data + begin * k.stride + head / group * dim);
    args.v = simd_pointer(v.data + begin * v.stride + head / group * dim);
    args.q_stride = q.stride, args.k_stride = k.stride, args.v_stride = v.stride;
    args.output = simd_pointer(output.data + begin * output.stride + head * dim);
    args.output_stride = output.stride;
    args.log_sum_exp = log_sum_exp.row(begin).data + head;
    args.log_sum_exp_stride = log_sum_exp.cols;
    args.queries = args.keys = tokens;
    args.head_dim = dim;
    args.scale = score_scale(shape);
    args.scratch = scratch;
    REPRISE_SIMD_CALL(attention_head, args);
  });
}

template <class T>
void attention_backward(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
                        VectorView<const std::int64_t> offsets, HeadRows<const T> q, HeadRows<const T> k,
                        HeadRows<const T> v, HeadRows<const T> output, MatrixView<const float> log_sum_exp,
                        HeadRows<const T> d_output, HeadRows<T> d_q, HeadRows<T> d_k, HeadRows<T> d_v) {
  using S = SimdStorage<T>;
  check_shape(shape);
  const std::int64_t group = shape.num_heads / shape.num_kv_heads, dim = shape.head_dim;
  const std::int64_t units = std::max<std::int64_t>(0, offsets.size - 1) * shape.num_kv_heads;
  const std::int64_t scratch_floats = backward_scratch(longest_document(offsets), dim);
  for_each_unit(stream, arena, units, scratch_floats, [&](std::int64_t unit, float* scratch) {
    const std::int64_t document = unit / shape.num_kv_heads, kv_head = unit % shape.num_kv_heads;
    const std::int64_t begin = offsets[document], q_col = kv_head * group * dim, k_col = kv_head * dim;
    AttentionHeadBackward<S> args{};
    args.tokens = offsets[document + 1] - begin;
    if (args.tokens == 0) return;
    args.q = simd_pointer(q.data + begin * q.stride + q_col);
    args.k = simd_pointer(k.data + begin * k.stride + k_col);
    args.v = simd_pointer(v.data + begin * v.stride + k_col);
    args.output = simd_pointer(output.data + begin * output.stride + q_col);
    args.d_output = simd_pointer(d_output.data + begin * d_output.stride + q_col);
    args.q_stride = q.stride, args.k_stride = k.stride, args.v_stride = v.stride;
    args.output_stride = output.stride, args.d_output_stride = d_output.stride;
    args.d_q = simd_pointer(d_q.data + begin * d_q.stride + q_col);
    args.d_k = simd_pointer(d_k.data + begin * d_k.stride + k_col);
    args.d_v = simd_pointer(d_v.data + begin * d_v.stride + k_col);
    args.d_q_stride = d_q.stride, args.d_k_stride = d_k.stride, args.d_v_stride = d_v.stride;
    args.log_sum_exp = log_sum_exp.row(begin).data + kv_head * group;
    args.log_sum_exp_stride = log_sum_exp.cols;
    args.head_dim = dim;
    args.group = group;
    args.scale = score_scale(shape);
    args.scratch = scratch;
    REPRISE_SIMD_CALL(attention_head_backward, args);
  });
}

template <class T>
void cached_attention(const CpuStream& stream, Arena& arena, const AttentionShape& shape,
                      VectorView<const std::int64_t> offsets, VectorView<const std::int64_t> lengths,
                      std::int64_t max_length, HeadRows<const T> q, HeadRows<const T> k, HeadRows<const T> v,
                      HeadRows<T> output) {
  using S = SimdStorage<T>;
  check_shape(shape);
  const std::int64_t group = shape.num_heads / shape.num_kv_heads, dim = shape.head_dim;
  const std::int64_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  const std::int64_t units = lengths.size * shape.num_heads;
  for_each_unit(stream, arena, units, forward_scratch(longest, dim), [&](std::int64_t unit, float* scratch) {
    const std::int64_t document = unit / shape.num_heads, head = unit % shape.num_heads;
    const std::int64_t begin = offsets[document], row = document * max_length;
    AttentionHead<S> args{};
    args.queries = offsets[document + 1] - begin;
    args.keys = lengths[document];
    if (args.queries == 0) return;
    args.q = simd_pointer(q.data + begin * q.stride + head * dim);
    args.k = simd_pointer(k.data + row * k.stride + head / group * dim);
    args.v = simd_pointer(v.data + row * v.stride + head / group * dim);
    args.q_stride = q.stride, args.k_stride = k.stride, args.v_stride = v.stride;
    args.output = simd_pointer(output.data + begin * output.stride + head * dim);
    args.output_stride = output.stride;
    args.head_dim = dim;
    args.scale = score_scale(shape);
    args.scratch = scratch;
    REPRISE_SIMD_CALL(attention_head, args);
  });
}

#define REPRISE_INSTANTIATE(T)                                                                                         \
  template void attention<T>(const CpuStream&, Arena&, const AttentionShape&, VectorView<const std::int64_t>,          \
                             HeadRows<const T>, HeadRows<const T>, HeadRows<const T>, HeadRows<T>, MatrixView<float>); \
  template void attention_backward<T>(const CpuStream&, Arena&, const AttentionShape&, VectorView<const std::int64_t>, \
                                      HeadRows<const T>, HeadRows<const T>, HeadRows<const T>, HeadRows<const T>,      \
                                      MatrixView<const float>, HeadRows<const T>, HeadRows<T>, HeadRows<T>,            \
                                      HeadRows<T>);                                                                    \
  template void cached_attention<T>(const CpuStream&, Arena&, const AttentionShape&, VectorView<const std::int64_t>,   \
                                    VectorView<const std::int64_t>, std::int64_t, HeadRows<const T>,                   \
                                    HeadRows<const T>, HeadRows<const T>, HeadRows<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
