#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

std::int64_t probe_width() {
  return kWidth;
}

void probe_unary(int function, const float* x, float* y, std::int64_t size) {
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    const Float value = load_partial(x + i, count);
    Float result = zero();
    if (function == 0) result = exp(value);
    if (function == 1) result = log(value);
    if (function == 2) result = tanh(value);
    if (function == 3) result = sigmoid(value);
    if (function == 4) result = sqrt(value);
    store_partial(y + i, result, count);
  }
}

void probe_atan2(const float* y, const float* x, float* angle, std::int64_t size) {
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    store_partial(angle + i, atan2(load_partial(y + i, count), load_partial(x + i, count)), count);
  }
}

void probe_reduce(const float* x, std::int64_t size, float* results) {
  const float infinity = __builtin_inff();
  Float sum = zero(), largest = broadcast(-infinity), smallest = broadcast(infinity);
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    sum += load_partial(x + i, count);
    largest = max(largest, load_partial(x + i, count, -infinity));
    smallest = min(smallest, load_partial(x + i, count, infinity));
  }
  results[0] = reduce_add(sum);
  results[1] = reduce_max(largest);
  results[2] = reduce_min(smallest);
}

void probe_max_min(const float* a, const float* b, float* larger, float* smaller) {
  store(larger, max(load(a), load(b)));
  store(smaller, min(load(a), load(b)));
}

double probe_dot(const float* a, const float* b, std::int64_t size) {
  DoubleSum sum;
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) sum.add_product(load(a + i), load(b + i));
  sum.add_product(load_partial(a + i, size - i), load_partial(b + i, size - i));
  sum.add(broadcast(0.0f));
  return sum.total();
}

void probe_masks(const float* x, int* results) {
  const Float value = load(x);
  const Int masks[] = {value > 0.0f, is_finite(value), is_nan(value)};
  for (const Int mask : masks) {
    *results++ = any(mask);
    *results++ = all(mask);
  }
}

}  // namespace reprise::REPRISE_SIMD
