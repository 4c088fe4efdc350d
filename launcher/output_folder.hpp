#pragma once

#include <filesystem>

namespace reprise {

// A folder that appears whole or not at all: written as `<output>.part`, then renamed.

/// Makes `<output>.part`, empty, and returns it. Throws Error(kUsage) where `output` holds something, Error(kDisk)
/// where it cannot be made.
[[nodiscard]] std::filesystem::path begin_folder(const std::filesystem::path& output);
/// Gives the part its name; what is in it must be on disk. Throws Error(kDisk).
void finish_folder(const std::filesystem::path& part, const std::filesystem::path& output);

}  // namespace reprise
