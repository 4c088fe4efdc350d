#pragma once

#include <cstdint>
#include <vector>

#include "launcher/run_config.hpp"
#include "layers/decoder_config.hpp"

namespace reprise {

/// The values of parallel.tensor that divide the ranks, the model and, by what is left for data, the batch.
[[nodiscard]] std::vector<std::int64_t> legal_tensor_sizes(const DecoderConfig& model, std::int64_t global_batch,
                                                           std::int64_t world_size);

/// Throws Error(kUsage) that names everything that does not divide and the values of parallel.tensor that fit.
void check_layout(const DecoderConfig& model, const RunConfig& config, std::int64_t world_size);

}  // namespace reprise
