#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/core/simd_levels.hpp"
#include "tests/core/simd_probe.hpp"

namespace reprise {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Distance from the true value in units of the last place of a float32 of its size.
double ulps(float got, double expected) {
  if (std::isnan(expected)) return std::isnan(got) ? 0.0 : 1e30;
  if (std::isinf(static_cast<float>(expected))) return got == static_cast<float>(expected) ? 0.0 : 1e30;
  if (!std::isfinite(got)) return 1e30;
  int exponent = 0;
  static_cast<void>(std::frexp(expected, &exponent));
  return std::abs(got - expected) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

/// Every 4,001st bit pattern of a float32 (prime, so that all mantissas and exponents meet), and the special values.
std::vector<float> sweep() {
  std::vector<float> values = {0.0f,     -0.0f,  kInfinity, -kInfinity, kNaN,   1.0f,
                               88.7228f, 88.73f, -87.34f,   -103.9f,    -104.1f};
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4001) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  return values;
}

template <class Reference>
void check_unary(SimdFunction function, double bound, const Reference& reference) {
  static const std::vector<float> x = sweep();
  std::vector<float> y(x.size());
  at_every_simd_level([&] {
    REPRISE_SIMD_CALL(probe_unary, static_cast<int>(function), x.data(), y.data(), static_cast<std::int64_t>(x.size()));
    double worst = 0.0;
    float where = 0.0f;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double error = ulps(y[i], reference(static_cast<double>(x[i])));
      if (error > worst) {
        worst = error;
        where = x[i];
      }
    }
    EXPECT_LE(worst, bound) << "at " << where;
  });
}

TEST(SimdMath, ExpIsWithinAnUlpAndAQuarter) {
  check_unary(SimdFunction::kExp, 1.25, [](double x) { return std::exp(x); });
}

TEST(SimdMath, LogIsWithinAnUlp) {
  check_unary(SimdFunction::kLog, 1.0, [](double x) { return std::log(x); });
}

TEST(SimdMath, TanhIsWithinTwoUlps) {
  check_unary(SimdFunction::kTanh, 2.0, [](double x) { return std::tanh(x); });
}

TEST(SimdMath, SigmoidIsWithinTwoUlpsAndAHalf) {
  check_unary(SimdFunction::kSigmoid, 2.5, [](double x) { return 1.0 / (1.0 + std::exp(-x)); });
}

TEST(SimdMath, SqrtIsCorrectlyRounded) {
  check_unary(SimdFunction::kSqrt, 0.5, [](double x) { return std::sqrt(x); });
}

TEST(SimdMath, Atan2IsWithinTwoUlpsForNonNegativeX) {
  std::vector<float> y, x;
  for (std::uint64_t i = 0; i < 300'000; ++i) {
    const std::uint64_t bits = random_bits(1, i);
    if (i % 2 == 0) {  // any two floats
      y.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
      x.push_back(std::abs(std::bit_cast<float>(static_cast<std::uint32_t>(bits >> 32))));
    } else {  // floats of similar size: every slope
      y.push_back(static_cast<float>(random_normal(2, i)));
      x.push_back(static_cast<float>(std::abs(random_normal(3, i))));
    }
  }
  std::vector<float> angle(x.size());
  at_every_simd_level([&] {
    REPRISE_SIMD_CALL(probe_atan2, y.data(), x.data(), angle.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_LE(ulps(angle[i], std::atan2(static_cast<double>(y[i]), static_cast<double>(x[i]))), 2.0)
          << y[i] << ", " << x[i];
    }
  });
}

TEST(SimdMath, Atan2OfZeroInfinityAndNaN) {
  at_every_simd_level([] {
    for (const float y : {0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, 3e38f, kInfinity, -kInfinity, kNaN}) {
      for (const float x : {0.0f, -0.0f, 1.0f, 1e-45f, 3e38f, kInfinity, kNaN}) {
        float angle = 9.0f;
        REPRISE_SIMD_CALL(probe_atan2, &y, &x, &angle, 1);
        const float expected = std::atan2(y, std::abs(x));  // -0 counts as 0
        EXPECT_LE(ulps(angle, static_cast<double>(expected)), 2.0) << y << ", " << x;
        EXPECT_TRUE(std::isnan(expected) || std::signbit(angle) == std::signbit(expected)) << y << ", " << x;
      }
    }
  });
}

TEST(SimdReduce, SumsMaximaAndMinimaOfEverySize) {
  at_every_simd_level([] {
    for (std::int64_t size = 0; size < 70; ++size) {
      std::vector<float> x;
      float largest = -kInfinity, smallest = kInfinity, sum = 0.0f;
      for (std::int64_t i = 0; i < size; ++i) {
        x.push_back(static_cast<float>(static_cast<int>(random_bits(4, static_cast<std::uint64_t>(i)) % 200) - 100));
        largest = std::max(largest, x.back());
        smallest = std::min(smallest, x.back());
        sum += x.back();  // small integers: exact in every order
      }
      float results[3];
      REPRISE_SIMD_CALL(probe_reduce, x.data(), size, results);
      EXPECT_EQ(results[0], sum);
      EXPECT_EQ(results[1], largest);
      EXPECT_EQ(results[2], smallest);
    }
  });
}

TEST(SimdReduce, ANaNAnywhereGivesNaN) {
  at_every_simd_level([] {
    for (std::size_t place = 0; place < 40; ++place) {
      std::vector<float> x(40, 1.0f);
      x[place] = kNaN;
      float results[3];
      REPRISE_SIMD_CALL(probe_reduce, x.data(), 40, results);
      for (const float result : results) EXPECT_TRUE(std::isnan(result)) << place;
    }
  });
}

TEST(SimdReduce, MaxAndMinGiveNaNWhereEitherIsNaN) {
  at_every_simd_level([] {
    std::vector<float> a(16, 1.0f), b(16, 2.0f), larger(16), smaller(16);
    a[0] = kNaN;
    b[1] = kNaN;
    a[2] = kInfinity;
    REPRISE_SIMD_CALL(probe_max_min, a.data(), b.data(), larger.data(), smaller.data());
    EXPECT_TRUE(std::isnan(larger[0]) && std::isnan(larger[1]) && std::isnan(smaller[0]) && std::isnan(smaller[1]));
    EXPECT_EQ(larger[2], kInfinity);
    EXPECT_EQ(smaller[2], 2.0f);
    EXPECT_EQ(larger[3], 2.0f);
    EXPECT_EQ(smaller[3], 1.0f);
  });
}

TEST(SimdReduce, DotProductsAreSummedInFloat64) {
  at_every_simd_level([] {
    for (const std::int64_t size : {0, 1, 5, 16, 33, 1000}) {
      std::vector<float> a, b;
      double expected = 0.0, magnitude = 0.0;
      for (std::int64_t i = 0; i < size; ++i) {
        a.push_back(static_cast<float>(random_normal(5, static_cast<std::uint64_t>(i))) * (i % 2 == 0 ? 1e6f : 1.0f));
        b.push_back(static_cast<float>(random_normal(6, static_cast<std::uint64_t>(i))));
        expected += static_cast<double>(a.back()) * b.back();
        magnitude += std::abs(static_cast<double>(a.back()) * b.back());
      }
      EXPECT_NEAR(REPRISE_SIMD_CALL(probe_dot, a.data(), b.data(), size), expected, 1e-14 * magnitude);
    }
  });
}

TEST(SimdMask, AnyAndAllSeeEveryLane) {
  at_every_simd_level([] {
    const auto width = static_cast<std::size_t>(REPRISE_SIMD_CALL(probe_width));
    for (std::size_t lane = 0; lane < width; ++lane) {
      std::vector<float> one(16, -1.0f), other(16, 1.0f);
      one[lane] = 1.0f;
      other[lane] = lane % 2 == 0 ? kNaN : -kInfinity;
      int results[6];
      REPRISE_SIMD_CALL(probe_masks, one.data(), results);
      EXPECT_TRUE(results[0] == 1 && results[1] == 0 && results[2] == 1 && results[3] == 1 && results[4] == 0);
      REPRISE_SIMD_CALL(probe_masks, other.data(), results);
      EXPECT_TRUE(results[0] == 1 && results[1] == 0 && results[2] == 1 && results[3] == 0 && results[5] == 0);
      EXPECT_EQ(results[4], lane % 2 == 0);
    }
  });
}

TEST(SimdLevel, CannotBeRaisedAboveTheMachine) {
  const SimdLevel highest = simd_level();
  for (int level = static_cast<int>(highest) + 1; level <= static_cast<int>(SimdLevel::kAvx512); ++level) {
    EXPECT_THROW(set_simd_level(static_cast<SimdLevel>(level)), Error);
  }
  EXPECT_EQ(simd_level(), highest);
}

}  // namespace
}  // namespace reprise
