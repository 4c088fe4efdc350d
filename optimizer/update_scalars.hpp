#pragma once

namespace reprise {

/// The step's scalars of one angle group, folded so that a coordinate costs few instructions (make_update_scalars).
/// A plain struct without code: the kernels are compiled once per instruction set.
struct UpdateScalars {
  float m_from_m, m_from_g;        ///< m = m_from_m m + m_from_g G
  float root_from_m, root_from_g;  ///< v = beta2 v + (root_from_m m + root_from_g G)^2, m before the step
  float beta2;
  float tan2;           ///< moclip: tan^2 of the step's angle = tan2 m^2 / v
  float v_correction;   ///< adamw: v_hat = v_correction v
  float lr_correction;  ///< adamw: lr m_hat = lr_correction m
  float eps;            ///< adamw
  float lr;             ///< moclip
  float decay;          ///< lr weight_decay
};

}  // namespace reprise
