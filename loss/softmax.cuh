#pragma once

#include "core/cuda/reduce.cuh"
#include "loss/softmax.hpp"

namespace reprise {

/// Maximum and sum of exp(z - max) of some logits, in one pass. Logits of -inf add nothing, NaN makes the sum NaN.
struct RunningSoftmax {
  float max = -INFINITY;
  float sum = 0.0f;

  __device__ static float exp_below(float z, float top) { return z == -INFINITY ? 0.0f : __expf(z - top); }

  __device__ void add(float z) {
    const float top = larger_or_nan(z, max);
    sum = sum * exp_below(max, top) + exp_below(z, top);
    max = top;
  }
  __device__ void add(const Pack<float, 4>& z) {
    const float top = larger_or_nan(larger_or_nan(larger_or_nan(z[0], z[1]), larger_or_nan(z[2], z[3])), max);
    sum = sum * exp_below(max, top) +
          ((exp_below(z[0], top) + exp_below(z[1], top)) + (exp_below(z[2], top) + exp_below(z[3], top)));
    max = top;
  }
};

/// The parts of all threads of a block; `scratch` as block_sum's.
template <int kThreads>
__device__ RunningSoftmax block_softmax(const RunningSoftmax& part, float* scratch) {
  RunningSoftmax all;
  all.max = block_max<kThreads>(part.max, scratch);
  all.sum = block_sum<kThreads>(part.sum * RunningSoftmax::exp_below(part.max, all.max), scratch);
  return all;
}

/// merge_statistics for device code.
__device__ inline void merge_part(TokenStatistics& to, const RunningSoftmax& part) {
  if (part.sum == 0.0f) return;
  if (to.sum_exp == 0.0f) {
    to.max = part.max;
    to.sum_exp = part.sum;
    return;
  }
  const float merged = part.max > to.max ? part.max : to.max;
  to.sum_exp = to.sum_exp * expf(to.max - merged) + part.sum * expf(part.max - merged);
  to.max = merged;
}

/// The gradient of one token's loss by its dot products.
struct SoftmaxSlope {
  float max, inverse_sum, weight, scale, inverse_cap;

  __device__ SoftmaxSlope(float token_max, float token_inverse_sum, float token_weight, const LogitRule& rule)
      : max(token_max),
        inverse_sum(token_inverse_sum),
        weight(token_weight),
        scale(rule.scale),
        inverse_cap(rule.softcap > 0.0f ? 1.0f / rule.softcap : 0.0f) {}

  /// dz/dx where the logit is z.
  __device__ float gain(float z) const {
    const float ratio = z * inverse_cap;
    return scale * (1.0f - ratio * ratio);
  }
  __device__ float delta(float z, float target) const {
    return weight * (__expf(z - max) * inverse_sum - target) * gain(z);
  }
};

}  // namespace reprise
