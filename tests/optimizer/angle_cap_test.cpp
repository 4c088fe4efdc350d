#include "optimizer/angle_cap.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "core/random.hpp"
#include "tests/optimizer/reference_optimizer.hpp"

namespace reprise {

namespace {

constexpr Obtuse kReadings[] = {Obtuse::kKeep, Obtuse::kDrop, Obtuse::kProject, Obtuse::kReflect, Obtuse::kRotate};

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

GroupSums sums_of(const Vector& g, const Vector& m) {
  return {dot(g, m), dot(g, g), dot(m, m), 0.0};
}

Vector turned(const Turn& turn, const Vector& g, const Vector& m) {
  Vector result(g.size());
  for (std::size_t i = 0; i < g.size(); ++i) result[i] = turn.gradient * g[i] + turn.momentum * m[i];
  return result;
}

/// Two vectors of the given lengths at the given angle, in a random plane of eight dimensions.
std::pair<Vector, Vector> pair_at(double degrees, double g_norm, double m_norm, std::uint64_t seed) {
  Vector a(8), b(8);
  for (std::size_t i = 0; i < 8; ++i) {
    a[i] = random_normal(seed, i, 0);
    b[i] = random_normal(seed, i, 1);
  }
  const double along = dot(a, b) / dot(a, a);
  for (std::size_t i = 0; i < 8; ++i) b[i] -= along * a[i];
  const double a_norm = std::sqrt(dot(a, a)), b_norm = std::sqrt(dot(b, b));
  const double radians = degrees * std::numbers::pi / 180.0;
  Vector g(8), m(8);
  for (std::size_t i = 0; i < 8; ++i) {
    m[i] = m_norm * a[i] / a_norm;
    g[i] = g_norm * (std::cos(radians) * a[i] / a_norm + std::sin(radians) * b[i] / b_norm);
  }
  return {g, m};
}

TEST(AngleCap, AgreesWithTheDefinitionAtEveryAngle) {
  for (const Obtuse obtuse : kReadings) {
    for (const double max_angle : {1.0, 30.0, 45.0, 89.0, 90.0, 180.0}) {
      for (int degrees = 1; degrees < 180; ++degrees) {
        if (degrees == 90 || degrees == 45 || degrees == 30) continue;  // there rounding decides which side it is
        const auto [g, m] = pair_at(degrees, 3.0, 0.01, static_cast<std::uint64_t>(degrees));
        const Vector found = turned(AngleCap(max_angle, obtuse).turn(sums_of(g, m)), g, m);
        const Vector expected = reference_turn(g, m, max_angle, obtuse);
        for (std::size_t i = 0; i < g.size(); ++i) {
          EXPECT_NEAR(found[i], expected[i], 1e-10)
              << degrees << " degrees, cap " << max_angle << ", reading " << static_cast<int>(obtuse);
        }
      }
    }
  }
}

TEST(AngleCap, KeepHoldsTheAngleToTheMomentumsLine) {
  for (const double max_angle : {5.0, 45.0, 60.0, 90.0}) {
    for (double degrees = 0.5; degrees < 180.0; degrees += 0.5) {
      const auto [g, m] = pair_at(degrees, 1e3, 1e-3, 5);
      const Turn turn = AngleCap(max_angle, Obtuse::kKeep).turn(sums_of(g, m));
      const Vector kept = turned(turn, g, m);
      if (degrees == 90.0) continue;  // nothing along m is left of it but rounding
      const double cosine = dot(kept, m) / std::sqrt(dot(kept, kept) * dot(m, m));
      EXPECT_GE(std::abs(cosine), std::cos(max_angle * std::numbers::pi / 180.0) - 1e-9) << degrees;
      EXPECT_NEAR(dot(kept, m), dot(g, m), 1e-9) << "the parallel part stays";
      EXPECT_LE(dot(kept, kept), dot(g, g) * (1.0 + 1e-12));
      EXPECT_NEAR(turn.angle, degrees, 1e-6);
      const double excess = std::min(degrees, 180.0 - degrees) - max_angle;
      if (excess != 0.0) {  // on the cone itself rounding decides
        EXPECT_EQ(turn.turned, excess > 0.0) << degrees;
      }
    }
  }
}

TEST(AngleCap, OtherReadingsEndInsideTheCone) {
  for (const Obtuse obtuse : {Obtuse::kProject, Obtuse::kReflect, Obtuse::kRotate}) {
    for (double degrees = 91.0; degrees <= 179.0; degrees += 1.0) {
      const auto [g, m] = pair_at(degrees, 2.0, 5.0, 6);
      const Vector kept = turned(AngleCap(45.0, obtuse).turn(sums_of(g, m)), g, m);
      const double norm = std::sqrt(dot(kept, kept));
      if (obtuse == Obtuse::kProject && degrees >= 135.0) {
        EXPECT_NEAR(norm, 0.0, 1e-10);
        continue;
      }
      EXPECT_LE(angle_between(kept, m), 45.0 + 1e-6) << degrees;
      EXPECT_LE(norm, 2.0 + 1e-9);
      if (obtuse == Obtuse::kRotate) {
        EXPECT_NEAR(norm, 2.0, 1e-9);
      }
    }
  }
}

TEST(AngleCap, LeavesTheFirstStepAndZeroVectorsAlone) {
  for (const Obtuse obtuse : kReadings) {
    for (const GroupSums& sums : {GroupSums{0.0, 5.0, 0.0, 0.0}, GroupSums{0.0, 0.0, 5.0, 0.0}, GroupSums{}}) {
      const Turn turn = AngleCap(45.0, obtuse).turn(sums);
      EXPECT_EQ(turn.gradient, 1.0);
      EXPECT_EQ(turn.momentum, 0.0);
      EXPECT_FALSE(turn.measured);
      EXPECT_FALSE(turn.turned);
    }
  }
}

TEST(AngleCap, ParallelAndOppositeGradientsStayFinite) {
  for (const Obtuse obtuse : kReadings) {
    for (const double sign : {1.0, -1.0}) {
      for (const double max_angle : {1.0, 45.0, 90.0, 180.0}) {
        const Turn turn = AngleCap(max_angle, obtuse).turn({sign * 6.0, 9.0, 4.0, 0.0});  // |g| = 3, |m| = 2
        const double result = turn.gradient * sign * 3.0 + turn.momentum * 2.0;           // along m
        double expected = sign * 3.0;
        if (sign < 0.0 && max_angle < 180.0) {
          if (obtuse == Obtuse::kDrop || obtuse == Obtuse::kProject) expected = 0.0;
          if (obtuse == Obtuse::kReflect || obtuse == Obtuse::kRotate) expected = 3.0;
        }
        EXPECT_NEAR(result, expected, 1e-12) << static_cast<int>(obtuse) << " " << sign << " " << max_angle;
        EXPECT_TRUE(turn.measured);
      }
    }
  }
}

TEST(AngleCap, AMomentumThatHasDiedOutCountsAsZero) {
  const Turn turn = AngleCap(45.0, Obtuse::kKeep).turn({1e-45, 1.0, 1e-80, 0.0});
  EXPECT_EQ(turn.gradient, 1.0);
  EXPECT_EQ(turn.momentum, 0.0);
}

TEST(AngleCap, RoundingOfTheSumsCannotMakeNaN) {
  const double above = 1.0 + 4.0 * std::numeric_limits<double>::epsilon();  // cosine beyond 1
  for (const Obtuse obtuse : kReadings) {
    for (const double sign : {1.0, -1.0}) {
      const Turn turn = AngleCap(30.0, obtuse).turn({sign * above, 1.0, 1.0, 0.0});
      EXPECT_TRUE(std::isfinite(turn.gradient) && std::isfinite(turn.momentum) && std::isfinite(turn.angle));
    }
  }
}

TEST(AngleStatistics, CountsMeasuredGroupsOnly) {
  std::vector<Turn> turns(6);
  for (std::size_t i = 0; i < 5; ++i) turns[i] = {1.0, 0.0, 10.0 * static_cast<double>(5 - i), true, i < 2};
  const AngleStatistics statistics = angle_statistics(turns);
  EXPECT_EQ(statistics.groups, 5);
  EXPECT_DOUBLE_EQ(statistics.mean, 30.0);
  EXPECT_DOUBLE_EQ(statistics.max, 50.0);
  EXPECT_DOUBLE_EQ(statistics.clipped_share, 0.4);
  const std::array<double, 5> expected{12.0, 20.0, 30.0, 40.0, 48.0};  // linear between neighbours
  for (std::size_t q = 0; q < 5; ++q) EXPECT_NEAR(statistics.quantiles[q], expected[q], 1e-12);
  EXPECT_EQ(angle_statistics(std::vector<Turn>(3)).groups, 0);
}

}  // namespace

}  // namespace reprise
