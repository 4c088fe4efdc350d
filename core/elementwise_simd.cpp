#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {
namespace {

// BFloat16 arrives as std::uint16_t; load and store convert.

template <class T>
void scale_values(float factor, T* y, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(y + i, load(y + i) * factor);
  if (i < size) store_partial(y + i, load_partial(y + i, size - i) * factor, size - i);
}

template <class T, class U>
void add_values(const U* x, T* y, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(y + i, load(y + i) + load(x + i));
  if (i < size) store_partial(y + i, load_partial(y + i, size - i) + load_partial(x + i, size - i), size - i);
}

template <class T, class U>
void cast_values(const U* x, T* y, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(y + i, load(x + i));
  if (i < size) store_partial(y + i, load_partial(x + i, size - i), size - i);
}

}  // namespace

void scale_array(float factor, float* y, std::int64_t size) {
  scale_values(factor, y, size);
}
void scale_array(float factor, std::uint16_t* y, std::int64_t size) {
  scale_values(factor, y, size);
}
void add_array(const float* x, float* y, std::int64_t size) {
  add_values(x, y, size);
}
void add_array(const float* x, std::uint16_t* y, std::int64_t size) {
  add_values(x, y, size);
}
void add_array(const std::uint16_t* x, float* y, std::int64_t size) {
  add_values(x, y, size);
}
void add_array(const std::uint16_t* x, std::uint16_t* y, std::int64_t size) {
  add_values(x, y, size);
}
void cast_array(const float* x, std::uint16_t* y, std::int64_t size) {
  cast_values(x, y, size);
}
void cast_array(const std::uint16_t* x, float* y, std::int64_t size) {
  cast_values(x, y, size);
}

}  // namespace reprise::REPRISE_SIMD
