#pragma once

#include <cstdint>

#include "launcher/arena_plan.hpp"
#include "launcher/run_shape.hpp"

namespace reprise {

/// Bytes of the rank that needs most, at the worst moment of a step.
struct MemoryEstimate {
  std::int64_t weights = 0;
  std::int64_t gradients = 0;    ///< float32, whole even with ZeRO 2: backward fills them before they are scattered
  std::int64_t optimizer = 0;    ///< master weights (bfloat16 runs), moments, and with ZeRO 2 the shard's gradients
  std::int64_t activations = 0;  ///< kept for backward, and its scratch
  std::int64_t head = 0;         ///< of the loss
  std::int64_t workspace = 0;    ///< of collectives and, on a GPU, of libraries and the second queue
  std::int64_t store = 0;        ///< the replay store, packed
  std::int64_t batches = 0;      ///< of this step and of those that are prepared ahead
  std::int64_t program = 0;      ///< code, libraries, buffers of MPI
  std::int64_t released = 0;     ///< of the gradients: what is never resident together (ZeRO 2 on a CPU)

  /// What the step's arena holds.
  [[nodiscard]] std::int64_t arena() const { return activations + head; }
  /// What lies where the rank computes: on the GPU, if it has one.
  [[nodiscard]] std::int64_t device() const {
    return weights + gradients - released + optimizer + activations + head + workspace;
  }
  /// What lies in host memory even where a GPU computes.
  [[nodiscard]] std::int64_t host() const { return store + batches + program; }
  [[nodiscard]] std::int64_t total() const { return device() + host(); }
};

/// The replay store that every rank keeps in host memory; all 0 without one.
struct StoreShape {
  std::int64_t positions = 0, ids = 0;
  /// Ids of tiles, and logits (one for each id and token of a tile), per target; 0 = not known.
  double candidates_a_target = 0.0, logits_a_target = 0.0;
  double segment_rows = 0.0;  ///< different ids among segment_tokens targets of the head's gradient; 0 = not known
};

/// `device`: what one rank computes on.
[[nodiscard]] MemoryEstimate estimate_memory(const RunShape& run, const StepShape& step, const StoreShape& store,
                                             const RankDevice& device = {});

/// Bytes on disk and in memory of a replay store, from rates measured on real sets (docs/formats.md).
[[nodiscard]] std::int64_t store_disk_bytes(const StoreShape& store, bool log_probs);
[[nodiscard]] std::int64_t store_memory_bytes(const StoreShape& store, bool log_probs);

}  // namespace reprise
