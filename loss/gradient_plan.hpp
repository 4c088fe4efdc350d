#pragma once

#include <cstdint>
#include <vector>

#include "loss/candidate_index.hpp"
#include "loss/row_gradient.hpp"

namespace reprise {

/// How a GPU cuts the gradient of candidates. The sums' order depends on these alone.
struct GradientLimits {
  std::int64_t supertile_tokens = 1024;  ///< whose hidden states are in shared memory together
  std::int64_t segment_tokens = 8192;    ///< of one dense product
  std::int64_t dense_divisor = 32;       ///< rows listed by more than 1 / this of a segment's units go the dense way
  std::int64_t min_dense_rows = 64;      ///< in a segment; with fewer none does
  std::int64_t most_dense_rows = 2048;   ///< of one product
};

/// Rows of the tokens [token_begin, token_begin + tokens) and what lists them.
struct GradientPart {
  std::int64_t token_begin = 0, tokens = 0;
  bool is_dense = false;
  RowList list;  ///< on the device
};

/// The transpose of the candidates: which tokens list a row. Segment by segment first the rows that many tokens list,
/// then supertile by supertile the others, ordered by falling numbers of units. Made by the host with exact sizes,
/// without looking at logits; copied to the device.
[[nodiscard]] std::vector<GradientPart> plan_gradient(const Context& context, const LocalCandidates& candidates,
                                                      const GradientLimits& limits, HostArrays& host_arrays);

}  // namespace reprise
