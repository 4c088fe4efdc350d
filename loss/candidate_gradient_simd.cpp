#include "core/simd.hpp"
#include "loss/head_unit.hpp"  // plain structures only

namespace reprise::REPRISE_SIMD {

namespace {

constexpr std::int64_t kTileRows = 3;  // rows of a tile whose sums are in registers together
constexpr std::int64_t kLine = 16;     // floats
constexpr std::int64_t kTileVectors = REPRISE_SIMD_WIDTH == 16 ? 8 : 4;

REPRISE_SIMD_INLINE void prefetch_panel_row(const float* row) {
  if (row == nullptr) return;
  for (std::int64_t i = 0; i < kPanelColumns; i += kLine) __builtin_prefetch(row + i, 1, 3);
}

/// row [size], at column i, += x.
REPRISE_SIMD_INLINE void add_to(float* row, std::int64_t size, std::int64_t i, Float x) {
  if (i + kWidth <= size) {
    store(row + i, load(row + i) + x);
  } else if (i < size) {
    store_partial(row + i, load_partial(row + i, size - i) + x, size - i);
  }
}

template <std::int64_t kRows>
REPRISE_SIMD_INLINE void add_tile_rows(const float* panel, std::int64_t tokens, const std::int32_t* slots,
                                       const float* deltas, std::int64_t first_slot, float* sums) {
  for (std::int64_t first = 0; first < kPanelColumns; first += kTileVectors * kWidth) {
    Float part[kRows][kTileVectors] = {};
    const float* hidden = panel + first;
    for (std::int64_t t = 0; t < tokens; ++t, hidden += kPanelColumns) {
      Float factor[kRows];
      for (std::int64_t r = 0; r < kRows; ++r) factor[r] = broadcast(deltas[r * tokens + t]);
      for (std::int64_t v = 0; v < kTileVectors; ++v) {
        const Float h = in_register(load(hidden + v * kWidth));
        for (std::int64_t r = 0; r < kRows; ++r) part[r][v] = fma(factor[r], h, part[r][v]);
      }
    }
    for (std::int64_t r = 0; r < kRows; ++r) {
      float* to = sums + (slots[r] - first_slot) * kPanelColumns + first;
      for (std::int64_t v = 0; v < kTileVectors; ++v) store(to + v * kWidth, load(to + v * kWidth) + part[r][v]);
    }
  }
}

}  // namespace

void add_row_gradient(const float* panel, const RowEntry* entries, std::int64_t num_entries, float* d_row,
                      std::int64_t columns, const float* later) {
  constexpr std::int64_t kVectors = 8;
  prefetch_panel_row(later);
  for (std::int64_t first = 0; first < columns; first += kVectors * kWidth) {
    Float sums[kVectors] = {};
    for (std::int64_t e = 0; e < num_entries; ++e) {
      const float* hidden = panel + entries[e].token * kPanelColumns + first;
      const Float factor = broadcast(entries[e].delta);
      for (std::int64_t v = 0; v < kVectors; ++v) sums[v] = fma(factor, load(hidden + v * kWidth), sums[v]);
    }
    for (std::int64_t v = 0; v < kVectors; ++v) add_to(d_row, columns, first + v * kWidth, sums[v]);
  }
}

void add_tile_gradient(const float* panel, std::int64_t tokens, const std::int32_t* slots, std::int64_t num_rows,
                       const float* deltas, std::int64_t first_slot, float* sums) {
  std::int64_t i = 0;
  for (; i + kTileRows <= num_rows; i += kTileRows) {
    for (std::int64_t ahead = i + kTileRows; ahead < num_rows && ahead < i + 2 * kTileRows; ++ahead) {
      prefetch_panel_row(sums + (slots[ahead] - first_slot) * kPanelColumns);
    }
    add_tile_rows<kTileRows>(panel, tokens, slots + i, deltas + i * tokens, first_slot, sums);
  }
  for (; i < num_rows; ++i) add_tile_rows<1>(panel, tokens, slots + i, deltas + i * tokens, first_slot, sums);
}

void flush_row_sums(float* sums, float* d_row, std::int64_t columns, const float* later) {
  prefetch_panel_row(later);
  for (std::int64_t i = 0; i < columns; i += kWidth) {
    add_to(d_row, columns, i, load(sums + i));
    store(sums + i, zero());
  }
}

}  // namespace reprise::REPRISE_SIMD
