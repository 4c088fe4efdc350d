#pragma once

#include <functional>

#include "core/elementwise.hpp"

namespace reprise {

/// Runs the body with the kernels of every instruction set that this machine has.
inline void for_each_simd_level(const std::function<void()>& body) {
  const SimdLevel best = simd_level();
  for (int level = 0; level <= static_cast<int>(best); ++level) {
    set_simd_level(static_cast<SimdLevel>(level));
    body();
  }
  set_simd_level(best);
}

}  // namespace reprise
