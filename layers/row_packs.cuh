#pragma once

#include <cstdint>

#include "core/cuda/simt.cuh"

namespace reprise {

// How kernels of layers/ walk rows: a thread takes kRowPack neighbours at a time, 16 bytes of bfloat16 and twice that
// of float32, as float32. Rows that do not begin at whole packs are read element by element.

constexpr int kRowPack = 8;
using RowPack = Pack<float, kRowPack>;

/// True when every row that begins a multiple of `stride` elements behind `data` begins at a whole pack.
template <class T>
bool has_whole_packs(const T* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % (sizeof(T) * kRowPack) == 0 && stride % kRowPack == 0;
}

/// Elements [col, col + kRowPack) of a row of `cols`; zeros behind its end. `is_whole`: the row consists of whole
/// packs.
template <class T>
__device__ inline RowPack load_row(const T* row, std::int64_t col, std::int64_t cols, bool is_whole) {
  RowPack values;
  if (is_whole) {
    const auto stored = load_pack<kRowPack>(row, col);
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) values[i] = to_float(stored[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) values[i] = col + i < cols ? to_float(row[col + i]) : 0.0f;
  }
  return values;
}

/// Rounds to T; writes nothing behind the row's end.
template <class T>
__device__ inline void store_row(T* row, std::int64_t col, std::int64_t cols, bool is_whole, const RowPack& values) {
  if (is_whole) {
    Pack<T, kRowPack> stored;
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) stored[i] = from_float<T>(values[i]);
    store_pack(row, col, stored);
  } else {
#pragma unroll
    for (int i = 0; i < kRowPack; ++i) {
      if (col + i < cols) row[col + i] = from_float<T>(values[i]);
    }
  }
}

}  // namespace reprise
