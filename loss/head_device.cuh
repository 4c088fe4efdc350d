#pragma once

#include <type_traits>
#include <utility>

#include "core/cuda/reduce.cuh"
#include "loss/head_kernels.hpp"

namespace reprise {

// What the kernels of the restricted head share.

__device__ inline float logit_of(const LogitRule& rule, float dot) {
  const float scaled = rule.scale * dot;
  return rule.softcap > 0.0f ? rule.softcap * tanhf(scaled / rule.softcap) : scaled;
}
/// dz/dx at the logit z.
__device__ inline float slope_of(const LogitRule& rule, float logit) {
  if (!(rule.softcap > 0.0f)) return rule.scale;
  const float ratio = logit / rule.softcap;
  return rule.scale * (1.0f - ratio * ratio);
}

/// A token's running maximum and sum of exp(z - max).
struct OnlineSoftmax {
  float max = -INFINITY;
  float sum = 0.0f;

  /// Takes logits with the maximum `top` into account; returns by how much earlier sums shrink. Their exponentials are
  /// added to `sum` by the caller. NaN reaches the sum through them.
  __device__ float raise(float top) {
    const float raised = fmaxf(max, top);
    const float shrink = sum == 0.0f ? 0.0f : expf(max - raised);
    max = raised;
    sum *= shrink;
    return shrink;
  }
};

/// body(std::integral_constant<int, i>) for i in [0, kCount): where the index must be a constant.
template <int kCount, class Body>
__device__ inline void for_each_constant(const Body& body) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (body(std::integral_constant<int, kIndices>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

/// Where a piece's results for its token t go.
template <class T>
__device__ const HeadResults& results_of(const HeadArguments<T>& head, const HeadPiece& piece) {
  return piece.part < 0 ? head.results : head.parts;
}
__device__ inline std::int64_t result_row(const HeadPiece& piece, int token) {
  return (piece.part < 0 ? piece.token_begin : piece.part) + token;
}

namespace detail {
/// Lane l gets values[l % kCount], summed over the lanes that differ from l below kCount.
template <int kCount>
__device__ inline float halve_values(const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    constexpr int kHalf = kCount / 2;
    const bool is_upper = (lane_index() & kHalf) != 0;
    float halves[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = is_upper ? values[i + kHalf] : values[i];
      const float given = is_upper ? values[i] : values[i + kHalf];
      halves[i] = kept + __shfl_xor_sync(kAllLanes, given, kHalf);
    }
    return halve_values(halves);
  }
}
}  // namespace detail

/// Lane l gets the sum over all lanes of values[l % kCount]; kCount a power of two up to 32. Each exchange halves what
/// a lane still carries: about kCount shuffles where kCount sums of their own take 5 kCount.
template <int kCount>
__device__ inline float transposed_warp_sum(const float (&values)[kCount]) {
  static_assert(kCount >= 1 && kCount <= kWarpSize && (kCount & (kCount - 1)) == 0);
  float sum = detail::halve_values(values);
#pragma unroll
  for (int distance = kWarpSize / 2; distance >= kCount; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

/// Rows of 16-byte words in shared memory whose places are exchanged so that 8 neighbouring rows' words in the same
/// column lie in different banks; kWords (1, 2, 4 or 8) to a row. Returns the word's index.
template <int kWords>
__device__ inline int swizzled_word(int row, int word) {
  constexpr int kRowsOfALine = 8 / kWords;  // rows that share 128 bytes
  return row * kWords + (word ^ (row / kRowsOfALine % kWords));
}

}  // namespace reprise
