#pragma once

#include <string>

namespace cuda_emulation {

/// The name of the innermost NVTX range of this host thread; "?" outside ranges.
[[nodiscard]] std::string innermost_range();

}  // namespace cuda_emulation
