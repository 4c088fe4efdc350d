#include "core/simd.hpp"
#include "optimizer/update_scalars.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

constexpr int kUnroll = 4;  // sums side by side: one would wait for its own additions

// The exponent's bits alone decide, which keeps NaN and Inf.
REPRISE_SIMD_INLINE Float without_subnormals(Float x) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(bit_cast<__m512i>(x), _mm512_set1_epi32(0x7f800000)), x);
#else
  return (bit_cast<Int>(x) & 0x7f800000) != 0 ? x : zero();
#endif
}

// Rules give what is taken off the weights, decay apart.

// lr atan2(m_hat, sqrt(v_hat)) from the squares, with one division and one root: for the smaller of the two legs
// sin^2 = min(m^2, v) / (m^2 + v) <= 1/2, and arcsin z = z + z^3 P(z^2), minimax to 1e-7.
struct MoClipRule {
  REPRISE_SIMD_INLINE static Float step(const UpdateScalars& s, Float m, Float v) {
    const Float across2 = m * m * s.tan2;
    const Float along2 = max_or_second(broadcast(0x1p-126f), v);  // against 0/0; a NaN passes
    const Float sin2 = min_or_second(across2, along2) / (across2 + along2);
    const Float sin = sqrt(sin2);
    Float p = broadcast(0x1.9d55eap-4f);
    p = fma(p, sin2, broadcast(-0x1.c04accp-5f));
    p = fma(p, sin2, broadcast(0x1.efdf32p-5f));
    p = fma(p, sin2, broadcast(0x1.3f902ep-5f));
    p = fma(p, sin2, broadcast(0x1.35210ap-4f));
    p = fma(p, sin2, broadcast(0x1.554e8ep-3f));
    const Float arc = fma(sin * sin2, p, sin);
    const Float angle = across2 > along2 ? 0x1.921fb6p+0f - arc : arc;
    return s.lr * bit_cast<Float>(bit_cast<UInt>(angle) | (bit_cast<UInt>(m) & 0x80000000u));
  }
};

struct AdamWRule {
  REPRISE_SIMD_INLINE static Float step(const UpdateScalars& s, Float m, Float v) {
    return s.lr_correction * m / (sqrt(v * s.v_correction) + s.eps);
  }
};

/// One vector of coordinates in registers.
struct Coordinates {
  Float exp_avg, exp_avg_sq, weight;
};

template <class Rule>
REPRISE_SIMD_INLINE Coordinates move(const UpdateScalars& s, Float gradient, Coordinates old) {
  const Float root_change = fma(broadcast(s.root_from_g), gradient, s.root_from_m * old.exp_avg);
  const Float m = without_subnormals(fma(broadcast(s.m_from_g), gradient, s.m_from_m * old.exp_avg));
  const Float v = without_subnormals(fma(root_change, root_change, s.beta2 * old.exp_avg_sq));
  // Decay multiplies the weight, because 1 - decay would round a small one away.
  return {m, v, old.weight - fma(broadcast(s.decay), old.weight, Rule::step(s, m, v))};
}

// `s` is a copy: the compiler could not tell that the stores leave it alone.
template <class Rule, bool kHasParameter>
void update(const UpdateScalars s, float* gradient, float* exp_avg, float* exp_avg_sq, float* master,
            std::uint16_t* parameter, std::int64_t size) {
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Coordinates now =
        move<Rule>(s, load(gradient + i), {load(exp_avg + i), load(exp_avg_sq + i), load(master + i)});
    store(gradient + i, zero());
    store(exp_avg + i, now.exp_avg);
    store(exp_avg_sq + i, now.exp_avg_sq);
    store(master + i, now.weight);
    if constexpr (kHasParameter) store(parameter + i, now.weight);
  }
  if (const std::int64_t rest = size - i; rest > 0) {
    const Coordinates now = move<Rule>(
        s, load_partial(gradient + i, rest),
        {load_partial(exp_avg + i, rest), load_partial(exp_avg_sq + i, rest), load_partial(master + i, rest)});
    store_partial(gradient + i, zero(), rest);
    store_partial(exp_avg + i, now.exp_avg, rest);
    store_partial(exp_avg_sq + i, now.exp_avg_sq, rest);
    store_partial(master + i, now.weight, rest);
    if constexpr (kHasParameter) store_partial(parameter + i, now.weight, rest);
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
    for (int u = 0; u < 2; ++u) {
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
    for (int u = 0; u < kUnroll; ++u) {
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
