#pragma once

#include <cstddef>
#include <string_view>

namespace reprise {

/// Insertions, deletions, replacements and swaps of neighbours that lead from a to b: how likely one is a misspelling
/// of the other.
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace reprise
