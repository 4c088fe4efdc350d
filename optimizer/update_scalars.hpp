#pragma once

namespace reprise {

/// The step's scalars of one angle group, as the kernels use them. A plain struct without code: the kernels are
/// compiled once per instruction set.
struct UpdateScalars {
  float gradient, momentum;        ///< g' = gradient G + momentum m (scale and angle cap)
  float beta1, beta2;              ///< m = beta1 m + (1 - beta1) g', v = beta2 v + (1 - beta2) g'^2
  float rest1, rest2;              ///< 1 - beta, rounded from float64
  float correction1, correction2;  ///< 1 / (1 - beta^t)
  float lr, decay;                 ///< decay = lr weight_decay
  float eps;                       ///< adamw only
};

}  // namespace reprise
