#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/sha256.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// Tree hashes of files, one each: SHA-256 of the concatenated SHA-256 digests of the file's 4-MiB chunks (an empty
/// file has none), so that ranks and threads can share the work. With `world`, each rank hashes its even_shard of all
/// chunks and every rank gets the result: one all-gather, collective. Throws Error(kind).
[[nodiscard]] std::vector<std::string> sha256_tree(const std::vector<std::filesystem::path>& paths, ErrorKind kind,
                                                   Communicator* world = nullptr);

}  // namespace reprise
