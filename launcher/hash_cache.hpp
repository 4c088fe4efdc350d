#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// sha256_tree with a memory: `cache` is a JSON file that keeps each file's hash with its absolute path, size and
/// modification time in nanoseconds, so that an unchanged model is read once in its life and not at every start. An
/// empty path means no memory. A cache that is missing, damaged or cannot be written costs time, never an error. Files
/// changed in the last two seconds are not remembered: their time could hide a second change.
/// With `world` its rank 0 reads and writes the cache: one broadcast, and the all-gather of sha256_tree when a
/// file is unknown; collective.
[[nodiscard]] std::vector<std::string> cached_sha256_tree(const std::vector<std::filesystem::path>& paths,
                                                          ErrorKind kind, const std::filesystem::path& cache,
                                                          Communicator* world = nullptr);

}  // namespace reprise
