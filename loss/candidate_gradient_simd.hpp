#pragma once

#include <cstdint>

#include "core/simd_dispatch.hpp"
#include "loss/head_unit.hpp"

namespace reprise {

/// d_row [columns] += sum over entries of delta times the panel's row of that token.
/// panel: [tokens, kPanelColumns], zero behind `columns`. `later` is a row of a later
/// call, or null: loaded ahead.
REPRISE_SIMD_DECLARE(void add_row_gradient(const float* panel, const RowEntry* entries, std::int64_t num_entries,
                                           float* d_row, std::int64_t columns, const float* later))

/// sums[slot_i - first_slot] += sum over tokens of deltas[i, token] panel[token], for the rows i of one tile.
/// panel: [tokens, kPanelColumns], deltas: [num_rows, tokens], sums: rows of kPanelColumns; slots are ascending.
REPRISE_SIMD_DECLARE(void add_tile_gradient(const float* panel, std::int64_t tokens, const std::int32_t* slots,
                                            std::int64_t num_rows, const float* deltas, std::int64_t first_slot,
                                            float* sums))

/// d_row [columns] += sums, and sums = 0.
REPRISE_SIMD_DECLARE(void flush_row_sums(float* sums, float* d_row, std::int64_t columns, const float* later))

}  // namespace reprise
