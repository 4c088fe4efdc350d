#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

REPRISE_SIMD_INLINE Float gain(Float logit, float scale, float inverse_cap) {
  const Float ratio = logit * inverse_cap;
  return scale * (1.0f - ratio * ratio);
}

REPRISE_SIMD_INLINE Float gradient(Float logit, float target, float max, float inverse_sum, float weight, float scale,
                                   float inverse_cap) {
  return weight * (exp(logit - max) * inverse_sum - target) * gain(logit, scale, inverse_cap);
}

}  // namespace

void softcap_logits(float* logits, std::int64_t size, float softcap) {
  if (!(softcap > 0.0f)) return;
  const float inverse = 1.0f / softcap;
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    store_partial(logits + i, softcap * tanh(load_partial(logits + i, count) * inverse), count);
  }
}

void softmax_statistics(const float* logits, std::int64_t size, float* max, float* sum_exp) {
  const std::int64_t whole = size - size % kWidth, rest = size - whole;
  Float top = load_partial(logits + whole, rest, -__builtin_inff());
  for (std::int64_t i = 0; i < whole; i += kWidth) top = max_or_second(load(logits + i), top);
  const float row_max = reduce_max(top);
  Float sum = exp(load_partial(logits + whole, rest, -__builtin_inff()) - row_max);
  for (std::int64_t i = 0; i < whole; i += kWidth) sum += exp(load(logits + i) - row_max);
  *max = row_max;
  *sum_exp = reduce_add(sum);
}

void softmax_gradient(float* logits, std::int64_t size, std::int64_t gold, float max, float inverse_sum, float weight,
                      float scale, float softcap) {
  const float inverse_cap = softcap > 0.0f ? 1.0f / softcap : 0.0f;
  const float gold_logit = gold >= 0 ? logits[gold] : 0.0f;
  const std::int64_t whole = size - size % kWidth, rest = size - whole;
  for (std::int64_t i = 0; i < whole; i += kWidth) {
    store(logits + i, gradient(load(logits + i), 0.0f, max, inverse_sum, weight, scale, inverse_cap));
  }
  const Float tail = load_partial(logits + whole, rest);
  store_partial(logits + whole, gradient(tail, 0.0f, max, inverse_sum, weight, scale, inverse_cap), rest);
  if (gold >= 0) {
    store_partial(logits + gold, gradient(broadcast(gold_logit), 1.0f, max, inverse_sum, weight, scale, inverse_cap),
                  1);
  }
}

float softmax_mass(const float* logits, std::int64_t size, float max, float inverse_sum) {
  const std::int64_t whole = size - size % kWidth, rest = size - whole;
  Float sum = exp(load_partial(logits + whole, rest, -__builtin_inff()) - max);
  for (std::int64_t i = 0; i < whole; i += kWidth) sum += exp(load(logits + i) - max);
  return inverse_sum * reduce_add(sum);
}

}  // namespace reprise::REPRISE_SIMD
