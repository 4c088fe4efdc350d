#pragma once

#include "core/arena.hpp"
#include "core/stream.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

/// Everything a layer or a loss may use; passed down, never stored. No globals.
struct Context {
  const Stream& stream;
  const ProcessGroups& groups;
  Arena& arena;                    ///< activations and scratch of the running micro-batch
  bool sequence_parallel = false;  ///< activations between tensor-parallel regions are sharded over tokens
};

}  // namespace reprise
