#pragma once

#include <cstdint>

#include "launcher/hardware_table.hpp"

namespace reprise {

/// The loss head of one micro-batch on one rank.
struct TimedHead {
  enum class Kind { kFull, kToken, kTile } kind = Kind::kFull;
  double targets = 0.0;
  double vocab_rows = 0.0;  ///< of this rank
  double vocab = 0.0;       ///< of all ranks
  std::int64_t hidden = 0;
  std::int64_t element_bytes = 2;
  double products = 3.0;  ///< of a full head: logits, d_hidden, d_weight, and the logits again where they are not kept
  std::int64_t tile_tokens = 1;  ///< that share one set
  double set_size = 100.0;       ///< mean ids a recorded set
  double negatives = 0.0;        ///< sampled rows, of all ranks
  bool frozen = false;           ///< no gradient of the head (LoRA)
  bool uniform_sets = false;     ///< ids drawn evenly from the vocabulary, as no language has them
  double passes = 1.0;           ///< see TimedStep
};

/// Distinct ids in the union of the sets of `tokens` neighbouring tokens.
[[nodiscard]] double union_size(const TimedHead& head, double tokens);

/// Forward and backward. A full head is three or four dense products and passes over float32 logits. A restricted one
/// reads each listed row of its tiles once for logits and d_hidden, and reads and writes each listed row of d_weight
/// once a micro-batch (docs/kernels.md has the bytes); never measured on a GPU.
[[nodiscard]] double head_seconds(const Hardware& hardware, const TimedHead& head);

}  // namespace reprise
