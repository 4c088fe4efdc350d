#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>

#include "launcher/memory_estimate.hpp"
#include "launcher/session.hpp"

namespace reprise {

/// What a training run has really held, of the rank with most; bytes.
struct MeasuredMemory {
  std::int64_t weights = 0, gradients = 0, optimizer = 0;
  std::int64_t arena = 0;    ///< its high-water mark
  std::int64_t gpu = 0;      ///< peak of the rank's device memory; 0 on a CPU
  std::int64_t process = 0;  ///< peak resident memory
};

/// Adds up nothing: takes the largest of all ranks, of each kind. Collective; one all-reduce.
[[nodiscard]] MeasuredMemory largest_of_ranks(Session& session, const MeasuredMemory& own);

/// What was foreseen beside what was measured: lines for people, and memory.json in `folder`.
[[nodiscard]] std::string describe_memory(const MemoryEstimate& foreseen, const MeasuredMemory& measured);
void write_memory_json(const std::filesystem::path& folder, const MemoryEstimate& foreseen,
                       const MeasuredMemory& measured);

}  // namespace reprise
