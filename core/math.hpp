#pragma once

#include <cstdint>
#include <limits>
#include <utility>

#include "core/error.hpp"

namespace reprise {

[[nodiscard]] constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
[[nodiscard]] constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

/// a / b; throws kInternal when b does not divide a.
[[nodiscard]] inline std::int64_t div_exact(std::int64_t a, std::int64_t b) {
  REPRISE_CHECK(b > 0 && a % b == 0, "{} is not divisible by {}", a, b);
  return a / b;
}

/// Integer conversion that throws kInternal when the value does not fit.
template <class To, class From>
[[nodiscard]] To narrow(From value) {
  REPRISE_CHECK(std::in_range<To>(value), "{} does not fit the target type", value);
  return static_cast<To>(value);
}

}  // namespace reprise
