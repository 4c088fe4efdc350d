#include "optimizer/update_kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "core/elementwise.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

/// Runs the body at every instruction set of this machine.
void at_every_level(const std::function<void()>& body) {
  const SimdLevel best = simd_level();
  for (const SimdLevel level : {SimdLevel::kPortable, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (level > best) break;
    set_simd_level(level);
    SCOPED_TRACE(simd_level_name());
    body();
  }
  set_simd_level(best);
}

struct Coordinates {
  std::vector<float> gradient, exp_avg, exp_avg_sq, weight;
  std::vector<BFloat16> parameter;

  explicit Coordinates(std::size_t size, std::uint64_t seed = 1) : parameter(size) {
    for (std::uint64_t i = 0; i < size; ++i) {
      const double scale = std::exp(4.0 * random_normal(seed, i, 4));  // many orders of magnitude
      gradient.push_back(static_cast<float>(scale * random_normal(seed, i, 0)));
      exp_avg.push_back(static_cast<float>(scale * random_normal(seed, i, 1)));
      exp_avg_sq.push_back(static_cast<float>(scale * scale * std::exp(3.0 * random_normal(seed, i, 2))));
      weight.push_back(static_cast<float>(random_normal(seed, i, 3)));
    }
  }
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(weight.size()); }
};

using Update = void (*)(const UpdateScalars&, VectorView<float>, VectorView<float>, VectorView<float>,
                        VectorView<float>, VectorView<BFloat16>);

void apply(Update update, const UpdateScalars& scalars, Coordinates& c) {
  update(scalars, c.gradient, c.exp_avg, c.exp_avg_sq, c.weight, c.parameter);
}

constexpr double kGradient = 0.7, kMomentum = 0.2, kRate = 0.01;
constexpr std::int64_t kStep = 3;

OptimizerOptions decaying() {
  OptimizerOptions options;
  options.weight_decay = 0.1;
  return options;
}

TEST(UpdateKernels, FollowTheFormulaToRounding) {
  const OptimizerOptions options = decaying();
  const double c1 = 1.0 / (1.0 - std::pow(options.beta1, kStep)), c2 = 1.0 / (1.0 - std::pow(options.beta2, kStep));
  const UpdateScalars scalars = make_update_scalars(options, kStep, kRate, kGradient, kMomentum);
  at_every_level([&] {
    for (const bool moclip : {true, false}) {
      const Coordinates before(1000);
      Coordinates after = before;
      apply(moclip ? moclip_update : adamw_update, scalars, after);
      for (std::size_t i = 0; i < before.weight.size(); ++i) {
        const double turned = kGradient * before.gradient[i] + kMomentum * before.exp_avg[i];
        const double m = options.beta1 * before.exp_avg[i] + (1.0 - options.beta1) * turned;
        const double v = options.beta2 * before.exp_avg_sq[i] + (1.0 - options.beta2) * turned * turned;
        const double size = std::abs(before.gradient[i]) + std::abs(before.exp_avg[i]);
        EXPECT_NEAR(after.exp_avg[i], m, 3e-7 * size);
        EXPECT_NEAR(after.exp_avg_sq[i], v, 3e-7 * (v + size * size));
        // The step from the moments as they were rounded: its own error is a few units of float32.
        const double m_hat = c1 * after.exp_avg[i], root = std::sqrt(c2 * after.exp_avg_sq[i]);
        const double move = moclip ? std::atan2(m_hat, root) : m_hat / (root + options.eps);
        const double weight = before.weight[i] - kRate * (move + options.weight_decay * before.weight[i]);
        EXPECT_NEAR(after.weight[i], weight, 6e-8 * std::abs(weight) + 6e-7 * kRate * std::abs(move)) << i;
        EXPECT_EQ(after.gradient[i], 0.0f);
        EXPECT_EQ(after.parameter[i].bits, BFloat16(after.weight[i]).bits);
      }
    }
  });
}

TEST(UpdateKernels, EveryAngleIsWithinAFewUnits) {
  OptimizerOptions options;
  options.beta1 = options.beta2 = 0.0;  // m = g', v = m^2, so set v through a step of its own
  options.beta2 = 0.5;
  at_every_level([&] {
    for (double degrees = -90.0; degrees <= 90.0; degrees += 0.25) {
      // beta1 = 0 and beta2 = 0.5 at t = 1: m_hat = g, v_hat = v0 + g^2, so tan = g / sqrt(v0 + g^2) <= 1;
      // steeper angles by an exp_avg that the kernel carries with momentum and beta: m = m0 when G = 0.
      const double radians = degrees * std::numbers::pi / 180.0;
      std::vector<float> gradient{0.0f}, weight{0.0f};
      std::vector<float> exp_avg{static_cast<float>(std::sin(radians))};
      std::vector<float> exp_avg_sq{static_cast<float>(std::cos(radians) * std::cos(radians))};
      UpdateScalars scalars = make_update_scalars(options, 1, 1.0, 1.0, 0.0);
      scalars.m_from_m = 1.0f;  // m and v stay as they are
      scalars.beta2 = 1.0f;
      scalars.tan2 = 1.0f;
      moclip_update(scalars, gradient, exp_avg, exp_avg_sq, weight, {});
      const double expected =
          std::atan2(static_cast<double>(exp_avg[0]), std::sqrt(static_cast<double>(exp_avg_sq[0])));
      EXPECT_NEAR(-weight[0], expected, 3e-7 * std::abs(expected)) << degrees;
      EXPECT_LE(std::abs(weight[0]), static_cast<float>(std::numbers::pi / 2.0));
    }
  });
}

// Where shards and chunks are cut must not show: any part of the coordinates, alone, gives the bits of the whole.
TEST(UpdateKernels, ACoordinatesBitsDoNotDependOnItsPlace) {
  const UpdateScalars scalars = make_update_scalars(decaying(), kStep, kRate, kGradient, kMomentum);
  at_every_level([&] {
    for (const Update update : {&moclip_update, &adamw_update}) {
      Coordinates whole(100);
      apply(update, scalars, whole);
      for (const std::int64_t begin : {0, 1, 7, 16, 31}) {
        for (const std::int64_t size : {0, 1, 5, 15, 16, 17, 33, 64}) {
          Coordinates part(100);
          const auto cut = [&](std::vector<float>& values) { return VectorView<float>(values).slice(begin, size); };
          update(scalars, cut(part.gradient), cut(part.exp_avg), cut(part.exp_avg_sq), cut(part.weight),
                 VectorView<BFloat16>(part.parameter).slice(begin, size));
          const Coordinates untouched(100);
          for (std::int64_t i = 0; i < 100; ++i) {
            const auto e = static_cast<std::size_t>(i);
            const Coordinates& expected = begin <= i && i < begin + size ? whole : untouched;
            EXPECT_EQ(part.weight[e], expected.weight[e]) << begin << " " << size << " " << i;
            EXPECT_EQ(part.exp_avg[e], expected.exp_avg[e]);
            EXPECT_EQ(part.exp_avg_sq[e], expected.exp_avg_sq[e]);
            EXPECT_EQ(part.gradient[e], expected.gradient[e]);
            EXPECT_EQ(part.parameter[e].bits, expected.parameter[e].bits);
          }
        }
      }
    }
  });
}

TEST(UpdateKernels, NaNReachesTheWeight) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const UpdateScalars scalars = make_update_scalars(decaying(), kStep, kRate, kGradient, kMomentum);
  at_every_level([&] {
    for (const Update update : {&moclip_update, &adamw_update}) {
      for (std::size_t i = 0; i < 40; i += 13) {
        Coordinates c(40);
        c.gradient[i] = nan;
        apply(update, scalars, c);
        for (std::size_t k = 0; k < 40; ++k) {
          EXPECT_EQ(std::isnan(c.weight[k]), k == i);
          EXPECT_EQ(std::isnan(c.exp_avg[k]), k == i);
          EXPECT_EQ(std::isnan(c.exp_avg_sq[k]), k == i);
        }
      }
    }
  });
}

TEST(UpdateKernels, UntouchedCoordinatesComeToRest) {
  OptimizerOptions options;
  at_every_level([&] {
    for (const Update update : {&moclip_update, &adamw_update}) {
      Coordinates c(20);
      std::vector<float> still = c.weight;
      for (int step = 1; step <= 4000; ++step) {
        apply(update, make_update_scalars(options, step, kRate, 1.0, 0.0), c);
        if (step == 3999) still = c.weight;
      }
      for (std::size_t i = 0; i < 20; ++i) {
        EXPECT_EQ(c.exp_avg[i], 0.0f);  // not a subnormal, which would slow every later step
        EXPECT_EQ(c.exp_avg_sq[i], 0.0f);
        EXPECT_EQ(c.weight[i], still[i]);
      }
    }
  });
}

TEST(UpdateKernels, SumsAreFloat64OfExactProducts) {
  at_every_level([&] {
    for (const std::size_t size : {0u, 1u, 15u, 16u, 17u, 31u, 32u, 33u, 64u, 1000u, 4099u}) {
      const Coordinates c(size, 9);
      double gm = 0.0, gg = 0.0, mm = 0.0, bound = 0.0;
      for (std::size_t i = 0; i < size; ++i) {
        const double g = c.gradient[i], m = c.exp_avg[i];
        gm += g * m;
        gg += g * g;
        mm += m * m;
        bound += std::abs(g * m);
      }
      const GroupSums sums = moclip_sums(c.gradient, c.exp_avg);
      EXPECT_NEAR(sums.g_dot_m, gm, 1e-12 * bound);
      EXPECT_NEAR(sums.g_dot_g, gg, 1e-12 * gg);
      EXPECT_NEAR(sums.m_dot_m, mm, 1e-12 * mm);
      EXPECT_EQ(sums.non_finite, 0.0);
      EXPECT_NEAR(adamw_sums(c.gradient).g_dot_g, gg, 1e-12 * gg);
    }
  });
}

TEST(UpdateKernels, NonFiniteCoordinatesAreCountedAndLargeOnesAreNot) {
  at_every_level([&] {
    Coordinates c(100);
    c.gradient[3] = std::numeric_limits<float>::max();  // its square leaves float32, not float64
    EXPECT_EQ(moclip_sums(c.gradient, c.exp_avg).non_finite, 0.0);
    EXPECT_EQ(adamw_sums(c.gradient).non_finite, 0.0);
    c.gradient[0] = std::numeric_limits<float>::infinity();
    c.gradient[50] = -std::numeric_limits<float>::infinity();
    c.gradient[99] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(moclip_sums(c.gradient, c.exp_avg).non_finite, 3.0);
    EXPECT_EQ(adamw_sums(c.gradient).non_finite, 3.0);
    c.exp_avg[7] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(moclip_sums(c.gradient, c.exp_avg).non_finite, 4.0);
  });
}

}  // namespace

}  // namespace reprise
