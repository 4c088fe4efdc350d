#pragma once

#include "optimizer/optimizer.hpp"

namespace reprise {

/// Throws Error(kUsage) that names the key and its legal values.
void check_options(const OptimizerOptions& options);

}  // namespace reprise
