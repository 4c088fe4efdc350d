#include "core/simd.hpp"

namespace reprise::REPRISE_SIMD {

namespace {

/// Bit l is set where x >= bound in lane l.
REPRISE_SIMD_INLINE std::uint32_t at_least(Float x, Float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(bit_cast<__m512>(x), bit_cast<__m512>(bound), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return static_cast<std::uint32_t>(__builtin_ia32_movmskps256(bit_cast<Float>(x >= bound)));
#else
  const Int mask = x >= bound;
  std::uint32_t bits = 0;
  for (std::int64_t lane = 0; lane < kWidth; ++lane) bits |= (static_cast<std::uint32_t>(mask[lane]) & 1u) << lane;
  return bits;
#endif
}

struct Reference {
  Float lowest;  // logits below it count as it: e^lowest is 2^-124 of the reference
  Int exponent;

  explicit Reference(std::int32_t power)
      : lowest(broadcast(static_cast<float>(power - 124) * 0.693147181f)), exponent(broadcast(0x4b400000 + power)) {}
};

/// e^x / 2^reference to about 1 ulp. The reduction starts from x itself, so only the exponent depends on the reference.
REPRISE_SIMD_INLINE Float scaled_exp(Float x, const Reference& reference) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = max_or_second(x, reference.lowest);
  const Float shifted = fma(x, broadcast(1.44269504f), broadcast(kRound));
  const Float n = shifted - kRound;
  const Float r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));  // ln 2 in two parts
  Float p = broadcast(0x1.6a21acp-10f);
  p = fma(p, r, broadcast(0x1.123b6ap-7f));
  p = fma(p, r, broadcast(0x1.5558fap-5f));
  p = fma(p, r, broadcast(0x1.555490p-3f));
  p = fma(p, r, broadcast(0x1.fffffcp-2f));
  p = fma(p * r, r, r) + 1.0f;
  return bit_cast<Float>(bit_cast<Int>(p) + ((bit_cast<Int>(shifted) - reference.exponent) << 23));
}

}  // namespace

void scale_and_cap(float* logits, std::int64_t size, float scale, float softcap) {
  const float inverse = softcap > 0.0f ? 1.0f / softcap : 0.0f;
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    const Float z = load_partial(logits + i, count) * scale;
    store_partial(logits + i, softcap > 0.0f ? softcap * tanh(z * inverse) : z, count);
  }
}

/// Cuts the row into groups of `block` vectors; maxima of the lanes of a group are maxima of `block` elements each.
/// What is left at the end has no maximum. Returns how many maxima; *max is over the whole row, NaN if any element is
/// not finite.
std::int64_t block_maxima(const float* row, std::int64_t size, std::int64_t block, float* maxima, float* max) {
  const std::int64_t group = block * kWidth;
  const Float infinity = broadcast(__builtin_inff());
  Float top = -infinity, zeros[4] = {};  // x * 0 adds up to NaN if some x is not finite
  std::int64_t count = 0, i = 0;
  for (; i + group <= size; i += group) {
    Float of[4] = {-infinity, -infinity, -infinity, -infinity};  // four chains, to hide the latency
    std::int64_t j = 0;
    for (; j + 4 <= block; j += 4) {
      for (std::int64_t c = 0; c < 4; ++c) {
        const Float x = load(row + i + (j + c) * kWidth);
        of[c] = max_or_second(x, of[c]);
        zeros[c] = fma(x, zero(), zeros[c]);
      }
    }
    for (; j < block; ++j) {
      const Float x = load(row + i + j * kWidth);
      of[0] = max_or_second(x, of[0]);
      zeros[0] = fma(x, zero(), zeros[0]);
    }
    const Float group_max = max_or_second(max_or_second(of[0], of[1]), max_or_second(of[2], of[3]));
    store(maxima + count, group_max);
    count += kWidth;
    top = max_or_second(group_max, top);
  }
  for (; i < size; i += kWidth) {
    const std::int64_t lanes = size - i < kWidth ? size - i : kWidth;
    top = max_or_second(load_partial(row + i, lanes, -__builtin_inff()), top);
    zeros[0] = fma(load_partial(row + i, lanes), zero(), zeros[0]);
  }
  *max = reduce_max(top) + reduce_add((zeros[0] + zeros[1]) + (zeros[2] + zeros[3]));
  return count;
}

std::int64_t count_at_least(const float* x, std::int64_t size, float bound) {
  Int negative = broadcast(std::int32_t{0});
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) negative += load(x + i) >= bound;
  std::int64_t count = 0;
  for (std::int64_t lane = 0; lane < kWidth; ++lane) count -= negative[lane];
  for (; i < size; ++i) count += x[i] >= bound ? 1 : 0;
  return count;
}

/// From element `begin` on: adds the terms to *sum_exp and appends values >= bound with their index. Returns where it
/// stopped: at `size`, or when fewer than kWidth places of `capacity` are left.
std::int64_t sum_and_filter(const float* row, std::int64_t begin, std::int64_t size, std::int32_t reference_power,
                            float bound, double* sum_exp, float* values, std::int32_t* indices, std::int64_t capacity,
                            std::int64_t* count) {
  const Reference reference(reference_power);
  const Float wide_bound = broadcast(bound);
  DoubleSum sum;
  std::int64_t i = begin, found = *count;
  for (; i < size && found + kWidth <= capacity; i += kWidth) {
    const std::int64_t lanes = size - i < kWidth ? size - i : kWidth;
    Float x, term;
    std::uint32_t hits;
    if (lanes == kWidth) {
      x = load(row + i);
      __builtin_prefetch(row + size + i);  // the next row of the matrix, while this one computes
      term = scaled_exp(x, reference);
      hits = at_least(x, wide_bound);
    } else {
      x = load_partial(row + i, lanes);
      term = select(iota() < static_cast<std::int32_t>(lanes), scaled_exp(x, reference), zero());
      hits = at_least(x, wide_bound) & ((1u << lanes) - 1u);
    }
    sum.add(term);
    for (; hits != 0; hits &= hits - 1) {
      const std::int64_t at = i + __builtin_ctz(hits);
      values[found] = row[at];
      indices[found++] = static_cast<std::int32_t>(at);
    }
  }
  *sum_exp += sum.total();
  *count = found;
  return i < size ? i : size;
}

void scaled_exp_array(const float* x, std::int64_t size, std::int32_t reference_power, float* y) {
  const Reference reference(reference_power);
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    store_partial(y + i, scaled_exp(load_partial(x + i, count), reference), count);
  }
}

}  // namespace reprise::REPRISE_SIMD
