#include "optimizer/update_kernels.hpp"

#include <cmath>

#include "core/error.hpp"
#include "core/simd_dispatch.hpp"

namespace reprise {

REPRISE_SIMD_DECLARE(void sums_of_products(const float* gradient, const float* exp_avg, std::int64_t size,
                                           double* sums))
REPRISE_SIMD_DECLARE(void sum_of_squares(const float* gradient, std::int64_t size, double* sum))
REPRISE_SIMD_DECLARE(void moclip_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq,
                                      float* master, std::uint16_t* parameter, std::int64_t size))
REPRISE_SIMD_DECLARE(void adamw_pass(const UpdateScalars* scalars, float* gradient, float* exp_avg, float* exp_avg_sq,
                                     float* master, std::uint16_t* parameter, std::int64_t size))

namespace {

double count_non_finite(VectorView<const float> values) {
  double count = 0.0;
  for (const float value : values) count += std::isfinite(value) ? 0.0 : 1.0;
  return count;
}

void check_sizes(VectorView<float> gradient, VectorView<float> exp_avg, VectorView<float> exp_avg_sq,
                 VectorView<float> master, VectorView<BFloat16> parameter) {
  const auto size = gradient.size;
  REPRISE_CHECK(exp_avg.size == size && exp_avg_sq.size == size && master.size == size &&
                    (parameter.size == size || parameter.empty()),
                "update of {}, {}, {}, {} and {} elements", size, exp_avg.size, exp_avg_sq.size, master.size,
                parameter.size);
}

std::uint16_t* bits_of(VectorView<BFloat16> values) {
  static_assert(sizeof(BFloat16) == sizeof(std::uint16_t));
  return values.empty() ? nullptr : &values.data->bits;
}

}  // namespace

UpdateScalars make_update_scalars(const OptimizerOptions& options, std::int64_t t, double lr, double gradient,
                                  double momentum) {
  const double rest1 = 1.0 - options.beta1, root2 = std::sqrt(1.0 - options.beta2);
  const double correction1 = 1.0 / (1.0 - std::pow(options.beta1, static_cast<double>(t)));
  const double correction2 = 1.0 / (1.0 - std::pow(options.beta2, static_cast<double>(t)));
  return {.m_from_m = static_cast<float>(options.beta1 + rest1 * momentum),
          .m_from_g = static_cast<float>(rest1 * gradient),
          .root_from_m = static_cast<float>(root2 * momentum),
          .root_from_g = static_cast<float>(root2 * gradient),
          .beta2 = static_cast<float>(options.beta2),
          .tan2 = static_cast<float>(correction1 * correction1 / correction2),
          .v_correction = static_cast<float>(correction2),
          .lr_correction = static_cast<float>(lr * correction1),
          .eps = static_cast<float>(options.eps),
          .lr = static_cast<float>(lr),
          .decay = static_cast<float>(lr * options.weight_decay)};
}

GroupSums moclip_sums(VectorView<const float> gradient, VectorView<const float> exp_avg) {
  REPRISE_CHECK(gradient.size == exp_avg.size, "sums over {} and {} elements", gradient.size, exp_avg.size);
  double sums[3];
  REPRISE_SIMD_CALL(sums_of_products, gradient.data, exp_avg.data, gradient.size, sums);
  GroupSums group{sums[0], sums[1], sums[2], 0.0};
  // A square of a finite float32 cannot leave float64, so a second look is needed only where a sum is not finite.
  if (!std::isfinite(group.g_dot_g) || !std::isfinite(group.m_dot_m)) {
    group.non_finite = count_non_finite(gradient) + count_non_finite(exp_avg);
  }
  return group;
}

GroupSums adamw_sums(VectorView<const float> gradient) {
  GroupSums group;
  REPRISE_SIMD_CALL(sum_of_squares, gradient.data, gradient.size, &group.g_dot_g);
  if (!std::isfinite(group.g_dot_g)) group.non_finite = count_non_finite(gradient);
  return group;
}

void moclip_update(const UpdateScalars& scalars, VectorView<float> gradient, VectorView<float> exp_avg,
                   VectorView<float> exp_avg_sq, VectorView<float> master, VectorView<BFloat16> parameter) {
  check_sizes(gradient, exp_avg, exp_avg_sq, master, parameter);
  REPRISE_SIMD_CALL(moclip_pass, &scalars, gradient.data, exp_avg.data, exp_avg_sq.data, master.data,
                    bits_of(parameter), gradient.size);
}

void adamw_update(const UpdateScalars& scalars, VectorView<float> gradient, VectorView<float> exp_avg,
                  VectorView<float> exp_avg_sq, VectorView<float> master, VectorView<BFloat16> parameter) {
  check_sizes(gradient, exp_avg, exp_avg_sq, master, parameter);
  REPRISE_SIMD_CALL(adamw_pass, &scalars, gradient.data, exp_avg.data, exp_avg_sq.data, master.data, bits_of(parameter),
                    gradient.size);
}

}  // namespace reprise
