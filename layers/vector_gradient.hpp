#pragma once

#include <cstdint>

#include "core/arena.hpp"
#include "core/parameter.hpp"

namespace reprise {

/// The gradient of a vector; where it is frozen, scratch: d_weight of a norm falls out of d_x's own pass, and nobody
/// wants it.
template <class T>
[[nodiscard]] VectorView<float> vector_gradient(ParameterSet<T>& parameters, std::int64_t index, Arena& arena) {
  if (parameters.has_gradients()) return parameters.gradient(index).flat();
  return arena.vector<float>(parameters.spec(index).size(), "gradient of a frozen vector");
}

}  // namespace reprise
