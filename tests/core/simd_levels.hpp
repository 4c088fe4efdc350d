#pragma once

#include <gtest/gtest.h>

#include "core/elementwise.hpp"

namespace reprise {

/// body() once per instruction set of this machine, lowest first; the level is restored.
template <class Body>
void at_every_simd_level(const Body& body) {
  const SimdLevel highest = simd_level();
  for (int level = 0; level <= static_cast<int>(highest); ++level) {
    set_simd_level(static_cast<SimdLevel>(level));
    SCOPED_TRACE(simd_level_name());
    body();
  }
  set_simd_level(highest);
}

}  // namespace reprise
