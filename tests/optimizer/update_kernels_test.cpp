#include "optimizer/update_kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "core/random.hpp"
#include "core/transfer.hpp"
#include "optimizer/shard_plan.hpp"
#include "tests/support/device.hpp"

namespace reprise {

namespace {

constexpr UpdateRule kRules[] = {UpdateRule::kMoClip, UpdateRule::kAdamW};

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

  friend bool operator==(const Coordinates& a, const Coordinates& b) {
    const auto same = [](const auto& left, const auto& right) {
      return std::memcmp(left.data(), right.data(), left.size() * sizeof(left[0])) == 0;
    };
    return same(a.gradient, b.gradient) && same(a.exp_avg, b.exp_avg) && same(a.exp_avg_sq, b.exp_avg_sq) &&
           same(a.weight, b.weight) && same(a.parameter, b.parameter);
  }
};

/// Coordinates on the device.
class DeviceCoordinates {
 public:
  DeviceCoordinates(const Stream& stream, const Coordinates& host)
      : stream_(stream),
        gradient_(to_device(stream, host.gradient)),
        exp_avg_(to_device(stream, host.exp_avg)),
        exp_avg_sq_(to_device(stream, host.exp_avg_sq)),
        weight_(to_device(stream, host.weight)),
        parameter_(to_device(stream, host.parameter)) {}

  [[nodiscard]] UpdateState state() {
    return {gradient_.view(), exp_avg_.view(), exp_avg_sq_.view(), weight_.view(), parameter_.view()};
  }
  [[nodiscard]] Coordinates host() const {
    Coordinates host(0);
    host.gradient = to_host(stream_, gradient_.view());
    host.exp_avg = to_host(stream_, exp_avg_.view());
    host.exp_avg_sq = to_host(stream_, exp_avg_sq_.view());
    host.weight = to_host(stream_, weight_.view());
    host.parameter = to_host(stream_, parameter_.view());
    return host;
  }

 private:
  Stream stream_;
  Buffer<float> gradient_, exp_avg_, exp_avg_sq_, weight_;
  Buffer<BFloat16> parameter_;
};

/// One group's chunks of [begin, begin + size), the same places in every buffer.
std::vector<UpdateChunk> chunks_of(std::int64_t begin, std::int64_t size) {
  std::vector<UpdateChunk> chunks;
  for (std::int64_t offset = 0; offset < size; offset += ShardPlan::kChunkElements) {
    const std::int64_t place = begin + offset;
    chunks.push_back({.gradient = place,
                      .state = place,
                      .master = place,
                      .parameter = place,
                      .size = std::min(ShardPlan::kChunkElements, size - offset),
                      .slot = static_cast<std::int64_t>(chunks.size()),
                      .counted = true,
                      .decay = true});
  }
  return chunks;
}

[[nodiscard]] Coordinates updated(const Stream& stream, UpdateRule rule, const std::vector<UpdateScalars>& scalars,
                                  const Coordinates& before, const std::vector<UpdateChunk>& chunks,
                                  bool skipped = false) {
  DeviceCoordinates device(stream, before);
  const auto table = to_device(stream, chunks);
  const auto by_group = to_device(stream, scalars);
  std::vector<StepDecision> verdict(1);
  verdict[0].skipped = skipped;
  const auto decision = to_device(stream, verdict);
  update_chunks(stream, rule, table.view(), device.state(), by_group.view(), decision.view());
  return device.host();
}

[[nodiscard]] std::vector<GroupSums> summed(const Stream& stream, UpdateRule rule, const Coordinates& coordinates,
                                            const std::vector<UpdateChunk>& chunks) {
  DeviceCoordinates device(stream, coordinates);
  const auto table = to_device(stream, chunks);
  Buffer<GroupSums> sums(stream, static_cast<std::int64_t>(chunks.size()), "sums");
  sum_chunks(stream, rule, table.view(), device.state(), sums.view());
  return to_host(stream, sums.view());
}

constexpr double kGradient = 0.7, kMomentum = 0.2, kRate = 0.01;
constexpr std::int64_t kStep = 3;

OptimizerOptions decaying() {
  OptimizerOptions options;
  options.weight_decay = 0.1;
  return options;
}

UpdateScalars usual_scalars() {
  return make_update_scalars(make_step_terms(decaying(), kStep, kRate), kGradient, kMomentum);
}

TEST(UpdateKernels, FollowTheFormulaToRounding) {
  const OptimizerOptions options = decaying();
  const double c1 = 1.0 / (1.0 - std::pow(options.beta1, kStep)), c2 = 1.0 / (1.0 - std::pow(options.beta2, kStep));
  const Coordinates before(1000);
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      const Coordinates after = updated(stream, rule, {usual_scalars()}, before, chunks_of(0, before.size()));
      for (std::size_t i = 0; i < before.weight.size(); ++i) {
        const double turned = kGradient * before.gradient[i] + kMomentum * before.exp_avg[i];
        const double m = options.beta1 * before.exp_avg[i] + (1.0 - options.beta1) * turned;
        const double v = options.beta2 * before.exp_avg_sq[i] + (1.0 - options.beta2) * turned * turned;
        const double size = std::abs(before.gradient[i]) + std::abs(before.exp_avg[i]);
        EXPECT_NEAR(after.exp_avg[i], m, 3e-7 * size);
        EXPECT_NEAR(after.exp_avg_sq[i], v, 3e-7 * (v + size * size));
        // The step from the moments as they were rounded: its own error is a few units of float32.
        const double m_hat = c1 * after.exp_avg[i], root = std::sqrt(c2 * after.exp_avg_sq[i]);
        const double move = rule == UpdateRule::kMoClip ? std::atan2(m_hat, root) : m_hat / (root + options.eps);
        const double weight = before.weight[i] - kRate * (move + options.weight_decay * before.weight[i]);
        EXPECT_NEAR(after.weight[i], weight, 6e-8 * std::abs(weight) + 6e-7 * kRate * std::abs(move)) << i;
        EXPECT_EQ(after.gradient[i], 0.0f);
        EXPECT_EQ(after.parameter[i].bits, BFloat16(after.weight[i]).bits);
      }
    }
  });
}

TEST(UpdateKernels, EveryAngleIsWithinAFewUnits) {
  UpdateScalars scalars = make_update_scalars(make_step_terms({}, 1, 1.0), 1.0, 0.0);
  scalars.m_from_m = 1.0f;  // with G = 0 the moments stay as they are
  scalars.beta2 = 1.0f;
  scalars.tan2 = 1.0f;
  Coordinates before(0);
  for (double degrees = -90.0; degrees <= 90.0; degrees += 0.25) {
    const double radians = degrees * std::numbers::pi / 180.0;
    before.gradient.push_back(0.0f);
    before.weight.push_back(0.0f);
    before.exp_avg.push_back(static_cast<float>(std::sin(radians)));
    before.exp_avg_sq.push_back(static_cast<float>(std::cos(radians) * std::cos(radians)));
  }
  on_every_stream([&](const Stream& stream) {
    const Coordinates after = updated(stream, UpdateRule::kMoClip, {scalars}, before, chunks_of(0, before.size()));
    for (std::size_t i = 0; i < after.weight.size(); ++i) {
      const double m = after.exp_avg[i], root = std::sqrt(static_cast<double>(after.exp_avg_sq[i]));
      const double expected = std::atan2(m, root);
      EXPECT_NEAR(-after.weight[i], expected, 3e-7 * std::abs(expected)) << i;
      EXPECT_LE(std::abs(after.weight[i]), static_cast<float>(std::numbers::pi / 2.0));
    }
  });
}

// Where shards and chunks are cut must not show: any part of the coordinates, alone, gives the bits of the whole.
TEST(UpdateKernels, ACoordinatesBitsDoNotDependOnItsPlace) {
  const Coordinates before(130);
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      const Coordinates whole = updated(stream, rule, {usual_scalars()}, before, chunks_of(0, before.size()));
      for (const std::int64_t begin : {0, 16, 48}) {
        for (const std::int64_t size : {0, 1, 5, 15, 16, 17, 33, 82}) {
          const Coordinates part = updated(stream, rule, {usual_scalars()}, before, chunks_of(begin, size));
          for (std::int64_t i = 0; i < before.size(); ++i) {
            const auto e = static_cast<std::size_t>(i);
            const Coordinates& expected = begin <= i && i < begin + size ? whole : before;
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

// Each buffer has its own places, each group its scalars; only chunks that say so decay; float32 has no parameters.
TEST(UpdateKernels, OneCallServesManyTensors) {
  const std::int64_t size = ShardPlan::kChunkElements + 100;
  const Coordinates a(static_cast<std::size_t>(size), 1), b(50, 2);
  std::vector<UpdateScalars> scalars{usual_scalars(), usual_scalars()};
  scalars[1].lr = scalars[1].lr_correction = 1.0f;
  std::vector<UpdateScalars> without_decay = scalars;
  without_decay[1].decay = 0.0f;
  Coordinates both(static_cast<std::size_t>(size + 100), 3);
  std::vector<UpdateChunk> chunks = chunks_of(80, size);
  chunks.push_back({.gradient = 16, .state = 0, .master = 16, .parameter = 16, .size = 50, .group = 1});
  for (std::size_t c = 0; c + 1 < chunks.size(); ++c) chunks[c].state -= 16;
  const auto put = [](const auto& from, auto& to, std::int64_t begin) {
    std::copy(from.begin(), from.end(), to.begin() + begin);
  };
  for (const auto& [from, begin] : {std::pair{&b, 16}, std::pair{&a, 80}}) {
    put(from->gradient, both.gradient, begin);
    put(from->weight, both.weight, begin);
    put(from->exp_avg, both.exp_avg, begin - 16);
    put(from->exp_avg_sq, both.exp_avg_sq, begin - 16);
  }
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      const Coordinates after = updated(stream, rule, scalars, both, chunks);
      Coordinates unrounded = both;
      unrounded.parameter.clear();
      EXPECT_EQ(updated(stream, rule, scalars, unrounded, chunks).weight, after.weight);
      const Coordinates alone[] = {updated(stream, rule, {without_decay[1]}, b, chunks_of(0, b.size())),
                                   updated(stream, rule, {scalars[0]}, a, chunks_of(0, a.size()))};
      Coordinates expected = both;
      for (const int i : {0, 1}) {
        const std::int64_t begin = i == 0 ? 16 : 80;
        put(alone[i].gradient, expected.gradient, begin);
        put(alone[i].weight, expected.weight, begin);
        put(alone[i].parameter, expected.parameter, begin);
        put(alone[i].exp_avg, expected.exp_avg, begin - 16);
        put(alone[i].exp_avg_sq, expected.exp_avg_sq, begin - 16);
      }
      EXPECT_TRUE(after == expected);
    }
  });
}

TEST(UpdateKernels, ASkippedStepClearsGradientsAlone) {
  const Coordinates before(1500);
  Coordinates expected = before;
  std::fill(expected.gradient.begin(), expected.gradient.end(), 0.0f);
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      EXPECT_TRUE(updated(stream, rule, {usual_scalars()}, before, chunks_of(0, before.size()), true) == expected);
    }
  });
}

TEST(UpdateKernels, NaNReachesTheWeight) {
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      for (std::size_t i = 0; i < 40; i += 13) {
        Coordinates c(40);
        c.gradient[i] = std::numeric_limits<float>::quiet_NaN();
        c = updated(stream, rule, {usual_scalars()}, c, chunks_of(0, c.size()));
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
  constexpr std::int64_t kSteps = 1500;
  OptimizerOptions options;
  options.beta2 = 0.9;
  std::vector<UpdateScalars> scalars;  // a group for each step
  std::vector<UpdateChunk> chunks;
  for (std::int32_t step = 0; step < kSteps; ++step) {
    scalars.push_back(make_update_scalars(make_step_terms(options, step + 1, kRate), 1.0, 0.0));
    chunks.push_back({.size = 20, .group = step});
  }
  on_every_stream([&](const Stream& stream) {
    const auto by_step = to_device(stream, scalars);
    const auto table = to_device(stream, chunks);
    const auto taken = to_device(stream, std::vector<StepDecision>(1));
    for (const UpdateRule rule : kRules) {
      DeviceCoordinates device(stream, Coordinates(20));
      const auto steps = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t step = begin; step < end; ++step) {
          update_chunks(stream, rule, table.view().slice(step, 1), device.state(), by_step.view(), taken.view());
        }
        return device.host();
      };
      const Coordinates still = steps(0, kSteps - 1), rest = steps(kSteps - 1, kSteps);
      for (std::size_t i = 0; i < 20; ++i) {
        EXPECT_EQ(rest.exp_avg[i], 0.0f);  // not a subnormal, which would slow every later step
        EXPECT_EQ(rest.exp_avg_sq[i], 0.0f);
        EXPECT_EQ(rest.weight[i], still.weight[i]);
      }
    }
  });
}

TEST(UpdateKernels, SumsAreFloat64OfExactProducts) {
  on_every_stream([&](const Stream& stream) {
    for (const std::size_t size : {1u, 3u, 4u, 15u, 17u, 32u, 33u, 1000u, 4099u, 16384u}) {
      const Coordinates c(size, 9);
      double gm = 0.0, gg = 0.0, mm = 0.0, bound = 0.0;
      for (std::size_t i = 0; i < size; ++i) {
        const double g = c.gradient[i], m = c.exp_avg[i];
        gm += g * m;
        gg += g * g;
        mm += m * m;
        bound += std::abs(g * m);
      }
      const GroupSums sums = summed(stream, UpdateRule::kMoClip, c, chunks_of(0, c.size()))[0];
      EXPECT_NEAR(sums.g_dot_m, gm, 1e-12 * bound);
      EXPECT_NEAR(sums.g_dot_g, gg, 1e-12 * gg);
      EXPECT_NEAR(sums.m_dot_m, mm, 1e-12 * mm);
      EXPECT_EQ(sums.non_finite, 0.0);
      const GroupSums squares = summed(stream, UpdateRule::kAdamW, c, chunks_of(0, c.size()))[0];
      EXPECT_NEAR(squares.g_dot_g, gg, 1e-12 * gg);
      EXPECT_EQ(squares.g_dot_m, 0.0);
      EXPECT_EQ(squares.m_dot_m, 0.0);
    }
  });
}

TEST(UpdateKernels, NonFiniteCoordinatesAreCountedAndLargeOnesAreNot) {
  on_every_stream([&](const Stream& stream) {
    const auto count = [&](UpdateRule rule, const Coordinates& c) {
      return summed(stream, rule, c, chunks_of(0, c.size()))[0].non_finite;
    };
    Coordinates c(100);
    c.gradient[3] = std::numeric_limits<float>::max();  // its square leaves float32, not float64
    for (const UpdateRule rule : kRules) EXPECT_EQ(count(rule, c), 0.0);
    c.gradient[0] = std::numeric_limits<float>::infinity();
    c.gradient[50] = -std::numeric_limits<float>::infinity();
    c.gradient[99] = std::numeric_limits<float>::quiet_NaN();
    for (const UpdateRule rule : kRules) EXPECT_EQ(count(rule, c), 3.0);
    c.exp_avg[7] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(count(UpdateRule::kMoClip, c), 4.0);
  });
}

// Copies that another rank counts lend their soundness alone; those of another rank's shard nothing at all.
TEST(UpdateKernels, SumsGoToTheSlotsOfCountedChunks) {
  Coordinates c(96);
  c.gradient[40] = std::numeric_limits<float>::quiet_NaN();
  c.gradient[70] = std::numeric_limits<float>::quiet_NaN();
  std::vector<UpdateChunk> chunks;
  for (const std::int64_t begin : {0, 32, 64}) chunks.push_back(chunks_of(begin, 32)[0]);
  chunks[0].slot = 1;
  chunks[1].slot = 0;
  chunks[1].counted = false;
  chunks[2].slot = -1;
  on_every_stream([&](const Stream& stream) {
    for (const UpdateRule rule : kRules) {
      const std::vector<GroupSums> sums = summed(stream, rule, c, chunks);
      EXPECT_EQ(sums[0].g_dot_g, 0.0);
      EXPECT_EQ(sums[0].non_finite, 1.0);
      EXPECT_EQ(sums[1].g_dot_g, summed(stream, rule, c, chunks_of(0, 32))[0].g_dot_g);
      EXPECT_EQ(sums[1].non_finite, 0.0);
      EXPECT_EQ(sums[2].g_dot_g + sums[2].non_finite, 0.0);
    }
  });
}

}  // namespace

}  // namespace reprise
