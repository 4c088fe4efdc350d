#pragma once

// Vector types and float32 mathematics for kernels that are compiled once per instruction set (reprise_simd_sources).
// All of it lives in namespace reprise::REPRISE_SIMD, so that the three copies never meet in the linker. A file that
// includes this header includes no other header with inline functions.

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>  // intrinsics are always inlined: no copy of them reaches the linker
#endif

#ifndef REPRISE_SIMD  // for editors; the build always sets both
#define REPRISE_SIMD portable
#define REPRISE_SIMD_WIDTH 4
#endif

namespace reprise::REPRISE_SIMD {

inline constexpr std::int64_t kWidth = REPRISE_SIMD_WIDTH;

// Lane-wise + - * / < <= == ... and & | ^ ~ << >> work on these types; a comparison gives an Int of 0 and -1 lanes.
typedef float Float __attribute__((vector_size(4 * REPRISE_SIMD_WIDTH)));
typedef std::int32_t Int __attribute__((vector_size(4 * REPRISE_SIMD_WIDTH)));
typedef std::uint32_t UInt __attribute__((vector_size(4 * REPRISE_SIMD_WIDTH)));
typedef std::uint16_t Half __attribute__((vector_size(2 * REPRISE_SIMD_WIDTH)));  // bits of bfloat16
typedef float HalfFloat __attribute__((vector_size(2 * REPRISE_SIMD_WIDTH)));     // half of a Float's lanes
typedef double Double __attribute__((vector_size(4 * REPRISE_SIMD_WIDTH)));       // kWidth / 2 lanes

#define REPRISE_SIMD_INLINE [[gnu::always_inline]] inline

// ---- making and moving ---------------------------------------------------------------------------------------------

REPRISE_SIMD_INLINE Float broadcast(float value) {
  return value - Float{};  // not +: that would turn -0 into 0, so the compiler would have to add
}
REPRISE_SIMD_INLINE Int broadcast(std::int32_t value) {
  return Int{} + value;
}
REPRISE_SIMD_INLINE Float zero() {
  return Float{};
}
/// Lane numbers 0, 1, 2, ...
REPRISE_SIMD_INLINE Int iota() {
#if REPRISE_SIMD_WIDTH == 4
  return Int{0, 1, 2, 3};
#elif REPRISE_SIMD_WIDTH == 8
  return Int{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return Int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif
}

/// The same bits as another type of the same size.
template <class To, class From>
REPRISE_SIMD_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

/// mask ? a : b, lane by lane; mask lanes are 0 or -1.
REPRISE_SIMD_INLINE Float select(Int mask, Float a, Float b) {
  return mask ? a : b;
}
REPRISE_SIMD_INLINE Int select(Int mask, Int a, Int b) {
  return mask ? a : b;
}

/// Truncates towards zero; only for values that fit.
REPRISE_SIMD_INLINE Int to_int(Float x) {
  return __builtin_convertvector(x, Int);
}
REPRISE_SIMD_INLINE Float to_float(Int x) {
  return __builtin_convertvector(x, Float);
}

REPRISE_SIMD_INLINE Float widen(Half bits) {
#if defined(__AVX512F__)
  return bit_cast<Float>(bit_cast<UInt>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_cast<__m256i>(bits))) << 16);
#else
  return bit_cast<Float>(__builtin_convertvector(bits, UInt) << 16);
#endif
}
/// To bfloat16, round to nearest even; NaN stays NaN.
REPRISE_SIMD_INLINE Half narrow(Float x) {
  const UInt raw = bit_cast<UInt>(x);
  const UInt rounded = raw + 0x7fffu + ((raw >> 16) & 1u);
  const UInt bits = (x == x) ? rounded : (raw | 0x00400000u);
#if defined(__AVX512F__)
  return bit_cast<Half>(_mm512_maskz_cvtepi32_epi16(0xffff, bit_cast<__m512i>(bits >> 16)));
#else
  return __builtin_convertvector(bits >> 16, Half);
#endif
}

// Unaligned memory; std::uint16_t is bfloat16 storage.
REPRISE_SIMD_INLINE Float load(const float* from) {
  Float x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
REPRISE_SIMD_INLINE Float load(const std::uint16_t* from) {
  Half x;
  __builtin_memcpy(&x, from, sizeof(x));
  return widen(x);
}
REPRISE_SIMD_INLINE Int load(const std::int32_t* from) {
  Int x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
REPRISE_SIMD_INLINE void store(float* to, Float x) {
  __builtin_memcpy(to, &x, sizeof(x));
}
REPRISE_SIMD_INLINE void store(std::uint16_t* to, Float x) {
  const Half bits = narrow(x);
  __builtin_memcpy(to, &bits, sizeof(bits));
}
REPRISE_SIMD_INLINE void store(std::int32_t* to, Int x) {
  __builtin_memcpy(to, &x, sizeof(x));
}

/// The first `count` lanes of memory (0 <= count <= kWidth), `fill` in the others; nothing behind them is touched.
REPRISE_SIMD_INLINE Float load_partial(const float* from, std::int64_t count, float fill = 0.0f) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  return _mm512_mask_loadu_ps(broadcast(fill), mask, from);
#else
  float lanes[kWidth];
  for (std::int64_t i = 0; i < kWidth; ++i) lanes[i] = i < count ? from[i] : fill;
  return load(lanes);
#endif
}
REPRISE_SIMD_INLINE Float load_partial(const std::uint16_t* from, std::int64_t count, float fill = 0.0f) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  const Float x = widen(bit_cast<Half>(_mm256_maskz_loadu_epi16(mask, from)));
#else
  std::uint16_t lanes[kWidth];
  for (std::int64_t i = 0; i < kWidth; ++i) lanes[i] = i < count ? from[i] : std::uint16_t{0};
  const Float x = load(lanes);
#endif
  return select(iota() < static_cast<std::int32_t>(count), x, broadcast(fill));
}
REPRISE_SIMD_INLINE void store_partial(float* to, Float x, std::int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), x);
#else
  for (std::int64_t i = 0; i < kWidth; ++i) {
    if (i < count) to[i] = x[i];
  }
#endif
}
REPRISE_SIMD_INLINE void store_partial(std::uint16_t* to, Float x, std::int64_t count) {
  const Half bits = narrow(x);
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1u), bit_cast<__m256i>(bits));
#else
  for (std::int64_t i = 0; i < kWidth; ++i) {
    if (i < count) to[i] = bits[i];
  }
#endif
}

/// Keeps x in a register: without it the compiler may read memory again for every use, and loads become the limit.
REPRISE_SIMD_INLINE Float in_register(Float x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

/// a * b + c, one rounding where the machine has fused multiply-add.
REPRISE_SIMD_INLINE Float fma(Float a, Float b, Float c) {
  return a * b + c;
}
REPRISE_SIMD_INLINE Float abs(Float x) {
  return bit_cast<Float>(bit_cast<UInt>(x) & 0x7fffffffu);
}
/// |magnitude| with the sign of `sign`.
REPRISE_SIMD_INLINE Float copysign(Float magnitude, Float sign) {
  return bit_cast<Float>((bit_cast<UInt>(magnitude) & 0x7fffffffu) | (bit_cast<UInt>(sign) & 0x80000000u));
}
REPRISE_SIMD_INLINE Int is_nan(Float x) {
  return x != x;
}
REPRISE_SIMD_INLINE Int is_finite(Float x) {
  return (bit_cast<Int>(x) & 0x7f800000) != 0x7f800000;
}
/// NaN where either is NaN.
REPRISE_SIMD_INLINE Float max(Float a, Float b) {
  return is_nan(a) ? a : (a > b ? a : b);
}
REPRISE_SIMD_INLINE Float min(Float a, Float b) {
  return is_nan(a) ? a : (a < b ? a : b);
}
/// One instruction: `b` where either is NaN. With a running value as `b`, NaN input is passed over.
REPRISE_SIMD_INLINE Float max_or_second(Float a, Float b) {
  return a > b ? a : b;
}
REPRISE_SIMD_INLINE Float min_or_second(Float a, Float b) {
  return a < b ? a : b;
}
/// Correctly rounded.
REPRISE_SIMD_INLINE Float sqrt(Float x) {
  float lanes[kWidth];
  store(lanes, x);
  for (std::int64_t i = 0; i < kWidth; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
}

// ---- reductions over lanes: halves are folded onto each other, always in the same order -----------------------------

template <class Op>
REPRISE_SIMD_INLINE float reduce(Float x, Op op) {
  float lanes[kWidth];
#if REPRISE_SIMD_WIDTH == 16
  x = op(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = op(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = op(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  x = op(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif REPRISE_SIMD_WIDTH == 8
  x = op(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = op(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  x = op(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
#else
  x = op(x, __builtin_shufflevector(x, x, 2, 3, 0, 1));
  x = op(x, __builtin_shufflevector(x, x, 1, 0, 3, 2));
#endif
  store(lanes, x);
  return lanes[0];
}
REPRISE_SIMD_INLINE float reduce_add(Float x) {
  return reduce(
      x, [](Float a, Float b) __attribute__((always_inline)) { return a + b; });
}
/// NaN if any lane is NaN.
REPRISE_SIMD_INLINE float reduce_max(Float x) {
  return reduce(
      x, [](Float a, Float b) __attribute__((always_inline)) { return max(a, b); });
}
REPRISE_SIMD_INLINE float reduce_min(Float x) {
  return reduce(
      x, [](Float a, Float b) __attribute__((always_inline)) { return min(a, b); });
}
/// True if some (all) lanes of a mask are set.
REPRISE_SIMD_INLINE bool any(Int mask) {
  std::uint64_t words[kWidth / 2];
  __builtin_memcpy(words, &mask, sizeof(words));
  std::uint64_t bits = 0;
  for (std::int64_t i = 0; i < kWidth / 2; ++i) bits |= words[i];
  return bits != 0;
}
REPRISE_SIMD_INLINE bool all(Int mask) {
  return !any(~mask);
}

REPRISE_SIMD_INLINE Double to_double(HalfFloat x) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, x);  // the built-in conversion is taken apart into quarters
#else
  return __builtin_convertvector(x, Double);
#endif
}

/// A float64 sum of float32 vectors: s.add(x) per vector, s.total() at the end.
struct DoubleSum {
  Double low{}, high{};

  REPRISE_SIMD_INLINE void add(Float x) {
    HalfFloat halves[2];
    __builtin_memcpy(halves, &x, sizeof(x));
    low += to_double(halves[0]);
    high += to_double(halves[1]);
  }
  /// Adds a * b, the product in float64 (exact).
  REPRISE_SIMD_INLINE void add_product(Float a, Float b) {
    HalfFloat a_halves[2], b_halves[2];
    __builtin_memcpy(a_halves, &a, sizeof(a));
    __builtin_memcpy(b_halves, &b, sizeof(b));
    low += to_double(a_halves[0]) * to_double(b_halves[0]);
    high += to_double(a_halves[1]) * to_double(b_halves[1]);
  }
  REPRISE_SIMD_INLINE double total() const {
    const Double both = low + high;
    double sum = 0.0;
    for (std::int64_t i = 0; i < kWidth / 2; ++i) sum += both[i];
    return sum;
  }
};

// ---- mathematics: float32, polynomials fitted by minimax on the reduced range ---------------------------------------

/// 2^n for integral n in [-126, 127].
REPRISE_SIMD_INLINE Float power_of_two(Int n) {
  return bit_cast<Float>((n + 127) << 23);
}

/// e^x to about 1 ulp, subnormal results included; exp(-inf) = 0, exp(inf) = inf, NaN stays NaN.
REPRISE_SIMD_INLINE Float exp(Float x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;  // written so that a NaN passes
  x = x > 89.0f ? broadcast(89.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Float shifted = fma(x, broadcast(1.44269504f), broadcast(kRound));
  const Float n = shifted - kRound;
  const Int integer = bit_cast<Int>(shifted) - 0x4b400000;
  const Float r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));  // ln 2 in two parts
  Float p = broadcast(0x1.6a21acp-10f);
  p = fma(p, r, broadcast(0x1.123b6ap-7f));
  p = fma(p, r, broadcast(0x1.5558fap-5f));
  p = fma(p, r, broadcast(0x1.555490p-3f));
  p = fma(p, r, broadcast(0x1.fffffcp-2f));
  p = fma(p * r, r, r) + 1.0f;
  const Int half = integer >> 1;  // two factors, so that results from 2^-149 to 2^128 scale without a detour
  return p * power_of_two(half) * power_of_two(integer - half);
}

/// Natural logarithm to about 1 ulp; log(0) = -inf, log(x < 0) = NaN, log(inf) = inf, NaN stays NaN.
REPRISE_SIMD_INLINE Float log(Float x) {
  const Int subnormal = x < 0x1p-126f;
  const Float scaled = subnormal ? x * 0x1p23f : x;
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  const Int shifted = bit_cast<Int>(bit_cast<UInt>(scaled) - 0x3f3504f3u);
  const Int exponent = (shifted >> 23) - (subnormal & 23);
  const Float f = bit_cast<Float>((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  Float p = broadcast(0x1.146316p-4f);
  p = fma(p, f, broadcast(-0x1.de4fa0p-4f));
  p = fma(p, f, broadcast(0x1.e6f606p-4f));
  p = fma(p, f, broadcast(-0x1.fc1f6cp-4f));
  p = fma(p, f, broadcast(0x1.2336e2p-3f));
  p = fma(p, f, broadcast(-0x1.555c5ap-3f));
  p = fma(p, f, broadcast(0x1.99a4bcp-3f));
  p = fma(p, f, broadcast(-0x1.000006p-2f));
  p = fma(p, f, broadcast(0x1.555548p-2f));
  const Float e = to_float(exponent);
  const Float square = f * f;
  Float tail = fma(e, broadcast(-2.12194440e-4f), square * f * p);
  tail = fma(square, broadcast(-0.5f), tail);
  Float result = fma(e, broadcast(0.693359375f), f + tail);
  result = x == 0.0f ? broadcast(-__builtin_inff()) : result;
  result = x < 0.0f ? broadcast(__builtin_nanf("")) : result;
  const Int passes = ~(x < __builtin_inff());  // inf and NaN
  return passes ? x : result;
}

/// 1 / (1 + e^-x) to 2.5 ulp on both sides.
REPRISE_SIMD_INLINE Float sigmoid(Float x) {
  const Float e = exp(-abs(x));
  return (x < 0.0f ? e : broadcast(1.0f)) / (e + 1.0f);
}

/// Hyperbolic tangent to about 2 ulp.
REPRISE_SIMD_INLINE Float tanh(Float x) {
  const Float magnitude = abs(x);
  const Float square = x * x;
  Float p = broadcast(-0x1.75623cp-8f);
  p = fma(p, square, broadcast(0x1.520b2cp-6f));
  p = fma(p, square, broadcast(-0x1.b83854p-5f));
  p = fma(p, square, broadcast(0x1.11070ap-3f));
  p = fma(p, square, broadcast(-0x1.555532p-2f));
  const Float small = fma(p * square, magnitude, magnitude);
  const Float large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  return copysign(magnitude < 0.625f ? small : large, x);
}

/// atan2(y, x) for x >= 0, in [-pi/2, pi/2], within 2 ulp; atan2(+-0, 0) = +-0, infinities as in libm, NaN stays NaN.
REPRISE_SIMD_INLINE Float atan2(Float y, Float x) {
  const Float height = abs(y), width = abs(x);
  const Int steep = height > width;
  const Float ratio = (steep ? width : height) / (steep ? height : width);
  const Float equal = width == 0.0f ? zero() : broadcast(1.0f);  // 0/0 is 0, inf/inf is 1
  const Float t = height == width ? equal : ratio;
  const Float s = t * t;
  const Float s2 = s * s;
  const Float s4 = s2 * s2;
  // P(s) of degree 8 by pairs: the chain of dependent instructions is half as long as Horner's
  const Float p01 = fma(s, broadcast(0x1.9991fep-3f), broadcast(-0x1.55553ep-2f));
  const Float p23 = fma(s, broadcast(0x1.c099fep-4f), broadcast(-0x1.2421b6p-3f));
  const Float p45 = fma(s, broadcast(0x1.dac9e2p-5f), broadcast(-0x1.583490p-4f));
  const Float p67 = fma(s, broadcast(0x1.65a65ap-7f), broadcast(-0x1.fed15ep-6f));
  const Float p4567 = fma(s4, broadcast(-0x1.d62fecp-10f), fma(s2, p67, p45));
  const Float p = fma(s4, p4567, fma(s2, p23, p01));
  const Float arc = fma(t * s, p, t);
  constexpr float kHalfPi = 0x1.921fb6p+0f, kHalfPiRest = -0x1.777a5cp-25f;
  const Float complement = kHalfPi - (arc - kHalfPiRest);
  return copysign(steep ? complement : arc, y);
}

}  // namespace reprise::REPRISE_SIMD
