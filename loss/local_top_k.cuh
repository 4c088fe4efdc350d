#pragma once

#include <limits>

#include "core/cuda/reduce.cuh"
#include "loss/local_top_k.hpp"

namespace reprise {

// What the kernels of local_top_k.cu share: rows of logits as aligned words, and sums of exponentials.

constexpr int kWordLogits = 4;  // of one 16-byte load
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = -std::numeric_limits<float>::max();  // what a word holds where the row has no logit

__device__ inline float logit_of(float product, const LogitRule& rule) {
  const float z = product * rule.scale;
  return rule.softcap > 0.0f ? rule.softcap * tanhf(z * (1.0f / rule.softcap)) : z;
}

/// A row as aligned 16-byte words: its first logit is the element `skew` of word 0. Blocks are cut from words, so the
/// first and the last of them may hold fewer logits, but each holds some.
struct LogitRow {
  const float* logits;
  int size, skew;

  __device__ LogitRow(MatrixView<const float> matrix, std::int64_t row)
      : logits(matrix.row(row).data),
        size(static_cast<int>(matrix.cols)),
        skew(static_cast<int>(reinterpret_cast<std::uintptr_t>(logits) / sizeof(float) % kWordLogits)) {}

  __device__ int words() const { return (size + skew + kWordLogits - 1) / kWordLogits; }
  __device__ int index(int word) const { return word * kWordLogits - skew; }
  __device__ bool holds(int first_word, int count) const {
    return index(first_word) >= 0 && index(first_word + count) <= size;
  }
};

/// Any word, also one that reaches beyond the row.
template <bool kTransforms>
__device__ inline Pack<float, kWordLogits> load_word(const LogitRow& row, int word, const LogitRule& rule) {
  Pack<float, kWordLogits> x;
  const int index = row.index(word);
  if (row.holds(word, 1)) {
    x = load_pack<kWordLogits>(row.logits, index);
    if constexpr (kTransforms) {
      for (int e = 0; e < kWordLogits; ++e) x[e] = logit_of(x[e], rule);
    }
  } else {
    for (int e = 0; e < kWordLogits; ++e) {
      x[e] = kLowest;
      if (index + e >= 0 && index + e < row.size) {
        x[e] = kTransforms ? logit_of(row.logits[index + e], rule) : row.logits[index + e];
      }
    }
  }
  return x;
}

// ---- sums of exponentials -------------------------------------------------------------------------------------------

/// reference_exponent on the device, for any maximum.
__device__ inline int reference_of(float max) {
  return static_cast<int>(floor(static_cast<double>(fminf(fmaxf(max, -kMaxLogit), kMaxLogit)) * 1.4426950408889634));
}

/// x 2^exponent for exponent <= 0.
__device__ inline double times_power_of_two(double x, int exponent) {
  return exponent < -1022 ? 0.0 : x * __longlong_as_double(static_cast<long long>(1023 + exponent) << 52);
}

/// A thread's sum of e^x, relative to a power of two that all threads of the warp share and that follows the maximum of
/// what the warp has seen. The terms have the bits of local_top_k_simd.cpp's.
struct ExpSum {
  float max = -kInfinity;
  int reference = 0;
  float lowest = 0.0f;  // logits below it count as it: 2^-124 of the reference
  float round = 0.0f;   // adding it leaves the nearest integer, less the reference, in the low bits
  double sum = 0.0;

  /// To be called with the maximum of what the warp is about to add.
  __device__ void raise(float warp_max) {
    if (warp_max <= max) return;
    const int raised = reference_of(warp_max);
    sum = times_power_of_two(sum, sum == 0.0 ? 0 : reference - raised);
    max = warp_max;
    reference = raised;
    lowest = static_cast<float>(raised - 124) * 0.693147181f;
    round = 12582912.0f - static_cast<float>(raised);  // 1.5 * 2^23
  }

  __device__ void add(float x) {
    x = fmaxf(x, lowest);
    const float shifted = __fmaf_rn(x, 1.44269504f, round);
    const float n = __fadd_rn(shifted, -round);
    const float r = __fmaf_rn(n, 2.12194440e-4f, __fmaf_rn(n, -0.693359375f, x));  // ln 2 in two parts
    float p = 0x1.6a21acp-10f;
    p = __fmaf_rn(p, r, 0x1.123b6ap-7f);
    p = __fmaf_rn(p, r, 0x1.5558fap-5f);
    p = __fmaf_rn(p, r, 0x1.555490p-3f);
    p = __fmaf_rn(p, r, 0x1.fffffcp-2f);
    p = __fadd_rn(__fmaf_rn(__fmul_rn(p, r), r, r), 1.0f);
    sum += static_cast<double>(__uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23)));
  }
};

/// The statistics of what the parts' logits are together, by one warp; NaN in any maximum makes the maximum NaN.
__device__ inline ShardStatistics add_up(VectorView<const ShardStatistics> parts) {
  float max = -kInfinity;
  for (std::int64_t i = lane_index(); i < parts.size; i += kWarpSize) max = larger_or_nan(parts[i].max, max);
  max = warp_max(max);
  double sum = 0.0;
  for (std::int64_t i = lane_index(); i < parts.size; i += kWarpSize) {
    sum += times_power_of_two(parts[i].sum_exp, reference_of(parts[i].max) - reference_of(max));
  }
  return {warp_sum(sum), max, 0.0f};
}

}  // namespace reprise
