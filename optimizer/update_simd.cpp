#include "core/simd.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

constexpr std::int64_t kUnroll = 4;  // vectors in flight: one float64 chain each would wait for its own additions

struct Moments {
  Float exp_avg, exp_avg_sq;
};

REPRISE_SIMD_INLINE Float without_subnormals(Float x) {
  return abs(x) < 0x1p-126f ? zero() : x;  // a NaN passes
}

REPRISE_SIMD_INLINE Moments move_moments(const UpdateScalars& s, Float gradient, Float exp_avg, Float exp_avg_sq) {
  const Float turned = fma(broadcast(s.gradient), gradient, s.momentum * exp_avg);
  return {without_subnormals(fma(broadcast(s.beta1), exp_avg, s.rest1 * turned)),
          without_subnormals(fma(broadcast(s.beta2), exp_avg_sq, s.rest2 * (turned * turned)))};
}

struct MoClipRule {
  REPRISE_SIMD_INLINE static Float step(const UpdateScalars& s, Moments moments) {
    return atan2(moments.exp_avg * s.correction1, sqrt(moments.exp_avg_sq * s.correction2));
  }
};

struct AdamWRule {
  REPRISE_SIMD_INLINE static Float step(const UpdateScalars& s, Moments moments) {
    return moments.exp_avg * s.correction1 / (sqrt(moments.exp_avg_sq * s.correction2) + s.eps);
  }
};

// Rounding of lr weight_decay against 1 would swallow a small decay, so it multiplies the weight, not 1 - decay.
template <class Rule>
REPRISE_SIMD_INLINE Float move_weight(const UpdateScalars& s, Moments moments, Float weight) {
  return weight - fma(broadcast(s.decay), weight, s.lr * Rule::step(s, moments));
}

template <class Rule, bool kHasParameter>
void update(const UpdateScalars& s, float* gradient, float* exp_avg, float* exp_avg_sq, float* master,
            std::uint16_t* parameter, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Moments moments = move_moments(s, load(gradient + i), load(exp_avg + i), load(exp_avg_sq + i));
    const Float weight = move_weight<Rule>(s, moments, load(master + i));
    store(gradient + i, zero());
    store(exp_avg + i, moments.exp_avg);
    store(exp_avg_sq + i, moments.exp_avg_sq);
    store(master + i, weight);
    if constexpr (kHasParameter) store(parameter + i, weight);
  }
  if (const std::int64_t rest = size - i; rest > 0) {
    const Moments moments = move_moments(s, load_partial(gradient + i, rest), load_partial(exp_avg + i, rest),
                                         load_partial(exp_avg_sq + i, rest));
    const Float weight = move_weight<Rule>(s, moments, load_partial(master + i, rest));
    store_partial(gradient + i, zero(), rest);
    store_partial(exp_avg + i, moments.exp_avg, rest);
    store_partial(exp_avg_sq + i, moments.exp_avg_sq, rest);
    store_partial(master + i, weight, rest);
    if constexpr (kHasParameter) store_partial(parameter + i, weight, rest);
  }
}

template <class Rule>
void update_any(const UpdateScalars& s, float* gradient, float* exp_avg, float* exp_avg_sq, float* master,
                std::uint16_t* parameter, std::int64_t size) {
  if (parameter == nullptr) {
    update<Rule, false>(s, gradient, exp_avg, exp_avg_sq, master, parameter, size);
  } else {
    update<Rule, true>(s, gradient, exp_avg, exp_avg_sq, master, parameter, size);
  }
}

}  // namespace

void moclip_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq, float* master,
                 std::uint16_t* parameter, std::int64_t size) {
  update_any<MoClipRule>(*scalars, gradient, exp_avg, exp_avg_sq, master, parameter, size);
}

void adamw_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq, float* master,
                std::uint16_t* parameter, std::int64_t size) {
  update_any<AdamWRule>(*scalars, gradient, exp_avg, exp_avg_sq, master, parameter, size);
}

/// sums = <G,m>, <G,G>, <m,m>; every product is exact in float64.
void sums_of_products(const float* gradient, const float* exp_avg, std::int64_t size, double* sums) {
  DoubleSum gm[2], gg[2], mm[2];
  std::int64_t i = 0;
  for (; i + 2 * kWidth <= size; i += 2 * kWidth) {
    for (std::int64_t u = 0; u < 2; ++u) {
      const Float g = load(gradient + i + u * kWidth), m = load(exp_avg + i + u * kWidth);
      gm[u].add_product(g, m);
      gg[u].add_product(g, g);
      mm[u].add_product(m, m);
    }
  }
  for (; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    const Float g = load_partial(gradient + i, count), m = load_partial(exp_avg + i, count);
    gm[0].add_product(g, m);
    gg[0].add_product(g, g);
    mm[0].add_product(m, m);
  }
  sums[0] = gm[0].total() + gm[1].total();
  sums[1] = gg[0].total() + gg[1].total();
  sums[2] = mm[0].total() + mm[1].total();
}

void sum_of_squares(const float* gradient, std::int64_t size, double* sum) {
  DoubleSum gg[kUnroll];
  std::int64_t i = 0;
  for (; i + kUnroll * kWidth <= size; i += kUnroll * kWidth) {
    for (std::int64_t u = 0; u < kUnroll; ++u) {
      const Float g = load(gradient + i + u * kWidth);
      gg[u].add_product(g, g);
    }
  }
  for (; i < size; i += kWidth) {
    const Float g = load_partial(gradient + i, size - i < kWidth ? size - i : kWidth);
    gg[0].add_product(g, g);
  }
  *sum = (gg[0].total() + gg[1].total()) + (gg[2].total() + gg[3].total());
}

}  // namespace reprise::REPRISE_SIMD
