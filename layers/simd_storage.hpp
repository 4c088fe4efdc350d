#pragma once

#include <type_traits>

#include "core/elementwise_kernels.hpp"

namespace reprise {

/// What kernels of x_simd.cpp know as the element type of a T array: float, or the bits of bfloat16.
template <class T>
using SimdStorage = std::remove_pointer_t<decltype(simd_pointer(static_cast<T*>(nullptr)))>;

}  // namespace reprise
