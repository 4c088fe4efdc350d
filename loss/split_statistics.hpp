#pragma once

#include <cstdint>

#include "core/stream.hpp"
#include "core/view.hpp"
#include "loss/softmax.hpp"

namespace reprise {

/// One token's softmax inside and outside its candidates, on one rank. Gold's logits are not looked at.
struct SplitStatistics {
  TokenStatistics inside;
  TokenStatistics outside;
};

/// Token t's candidates are ids[begin[t], end[t]), sorted global ids; on the stream's device.
struct TokenSets {
  VectorView<const std::int64_t> begin, end;  ///< [T]
  VectorView<const std::int32_t> ids;

  [[nodiscard]] TokenSets tokens(std::int64_t first, std::int64_t count) const {
    return {begin.slice(first, count), end.slice(first, count), ids};
  }
};

/// Adds the logits [T, ids from first_id on] to the statistics [T] of their sides. Consumes the logits.
void add_split_statistics(const CpuStream& stream, const TokenSets& sets, std::int64_t first_id,
                          MatrixView<float> logits, VectorView<SplitStatistics> statistics);
void add_split_statistics(const CudaStream& stream, const TokenSets& sets, std::int64_t first_id,
                          MatrixView<float> logits, VectorView<SplitStatistics> statistics);
inline void add_split_statistics(const Stream& stream, const TokenSets& sets, std::int64_t first_id,
                                 MatrixView<float> logits, VectorView<SplitStatistics> statistics) {
  stream.visit([&](const auto& device) { add_split_statistics(device, sets, first_id, logits, statistics); });
}

}  // namespace reprise
