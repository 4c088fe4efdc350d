#include "core/simd.hpp"
#include "loss/head_unit.hpp"  // plain structures only

namespace reprise::REPRISE_SIMD {

namespace {

constexpr std::int64_t kMaxTokens = 8;           // tokens of a register block
constexpr std::int64_t kMaxGroup = 48;           // rows visited together
constexpr std::int64_t kGroupBytes = 192 << 10;  // of rows, so that they, H, dH and the next rows share L2
constexpr std::int64_t kAccumulators = REPRISE_SIMD_WIDTH == 16 ? 24 : 12;
constexpr std::int64_t kLine = 64;

template <std::int64_t kTokens>
constexpr std::int64_t kBlockRows = kAccumulators / kTokens > 8 ? 8 : kAccumulators / kTokens;
template <std::int64_t kTokens>
constexpr std::int64_t kBlockVectors = 16 / kTokens > 8 ? 8 : 16 / kTokens;

// ---- logits: kRows rows of W times kTokens tokens, both streamed once
// ------------------------------------------------

template <std::int64_t kRows, std::int64_t kTokens, class T>
REPRISE_SIMD_INLINE void dot_block(const T* const* rows, const float* hidden, std::int64_t depth, float* dots) {
  Float sums[kRows][kTokens] = {};
  const std::int64_t whole = depth - depth % kWidth;
  for (std::int64_t i = 0; i < whole; i += kWidth) {
    Float w[kRows];
    for (std::int64_t r = 0; r < kRows; ++r) w[r] = load(rows[r] + i);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Float h = load(hidden + t * depth + i);
      for (std::int64_t r = 0; r < kRows; ++r) sums[r][t] = fma(w[r], h, sums[r][t]);
    }
  }
  if (whole < depth) {
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Float h = load_partial(hidden + t * depth + whole, depth - whole);
      for (std::int64_t r = 0; r < kRows; ++r) {
        sums[r][t] = fma(load_partial(rows[r] + whole, depth - whole), h, sums[r][t]);
      }
    }
  }
  for (std::int64_t r = 0; r < kRows; ++r) {
    for (std::int64_t t = 0; t < kTokens; ++t) dots[r * kTokens + t] = reduce_add(sums[r][t]);
  }
}

/// dots [num_rows, kTokens]
template <std::int64_t kTokens, class T>
void dot_rows(const T* const* rows, std::int64_t num_rows, const float* hidden, std::int64_t depth, float* dots) {
  std::int64_t r = 0;
  for (; r + kBlockRows<kTokens> <= num_rows; r += kBlockRows<kTokens>) {
    dot_block<kBlockRows<kTokens>, kTokens>(rows + r, hidden, depth, dots + r * kTokens);
  }
  for (; r < num_rows; ++r) dot_block<1, kTokens>(rows + r, hidden, depth, dots + r * kTokens);
}

// ---- unnormalised dH: kTokens rows of the accumulator, kVectors vectors of columns at a time
// -------------------------

template <std::int64_t kTokens, std::int64_t kVectors, class T>
REPRISE_SIMD_INLINE void accumulate_block(const T* const* rows, std::int64_t num_rows, const float* factors,
                                          const float* rescale, std::int64_t column, std::int64_t depth,
                                          float* accumulator) {
  Float sums[kTokens][kVectors];
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t v = 0; v < kVectors; ++v) {
      sums[t][v] = rescale[t] * load(accumulator + t * depth + column + v * kWidth);
    }
  }
  for (std::int64_t r = 0; r < num_rows; ++r) {
    Float w[kVectors];
    for (std::int64_t v = 0; v < kVectors; ++v) w[v] = load(rows[r] + column + v * kWidth);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Float factor = broadcast(factors[r * kTokens + t]);
      for (std::int64_t v = 0; v < kVectors; ++v) sums[t][v] = fma(factor, w[v], sums[t][v]);
    }
  }
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t v = 0; v < kVectors; ++v) store(accumulator + t * depth + column + v * kWidth, sums[t][v]);
  }
}

/// Starts loading the lines of the next rows that hold [column, column + size).
template <class T>
REPRISE_SIMD_INLINE void prefetch_rows(const T* const* rows, std::int64_t num_rows, std::int64_t column,
                                       std::int64_t size) {
  constexpr std::int64_t kStep = kLine / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t r = 0; r < num_rows; ++r) {
    for (std::int64_t i = 0; i < size; i += kStep) __builtin_prefetch(rows[r] + column + i, 0, 2);
  }
}

template <std::int64_t kTokens, class T>
void accumulate_rows(const T* const* rows, std::int64_t num_rows, const float* factors, const float* rescale,
                     std::int64_t depth, float* accumulator, const T* const* next, std::int64_t num_next) {
  constexpr std::int64_t kStep = kBlockVectors<kTokens> * kWidth;
  std::int64_t column = 0;
  for (; column + kStep <= depth; column += kStep) {
    prefetch_rows(next, num_next, column, kStep);
    accumulate_block<kTokens, kBlockVectors<kTokens>>(rows, num_rows, factors, rescale, column, depth, accumulator);
  }
  for (; column + kWidth <= depth; column += kWidth) {
    accumulate_block<kTokens, 1>(rows, num_rows, factors, rescale, column, depth, accumulator);
  }
  const std::int64_t rest = depth - column;
  if (rest == 0) return;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    Float sum = rescale[t] * load_partial(accumulator + t * depth + column, rest);
    for (std::int64_t r = 0; r < num_rows; ++r) {
      sum = fma(broadcast(factors[r * kTokens + t]), load_partial(rows[r] + column, rest), sum);
    }
    store_partial(accumulator + t * depth + column, sum, rest);
  }
}

// ---- softmax of a block [num_rows, kTokens]; lane i of a vector belongs to token i % kTokens
// -------------------------

template <std::int64_t kTokens>
REPRISE_SIMD_INLINE Float repeat(const float* values) {
  constexpr std::int64_t kPeriod = kTokens < kWidth ? kTokens : kWidth;
  float lanes[kWidth];
  for (std::int64_t i = 0; i < kWidth; ++i) lanes[i] = values[i % kPeriod];
  return load(lanes);
}

/// Logits from dot products in place, factors = exp(z - max) dz/dx, and the running max and sum with what they change
/// about earlier sums (rescale).
template <std::int64_t kTokens>
void softmax_block(float* logits, std::int64_t num_rows, float scale, float softcap, float* max, float* sum_exp,
                   float* factors, float* rescale) {
  const std::int64_t size = num_rows * kTokens;
  const float inverse_cap = softcap > 0.0f ? 1.0f / softcap : 0.0f;
  // Where a vector is narrower than a block row, the lanes of `half` 0 and 1 take turns.
  constexpr std::int64_t kTurns = kTokens <= kWidth ? 1 : kTokens / kWidth;
  Float top[kTurns], sum[kTurns];
  for (std::int64_t turn = 0; turn < kTurns; ++turn) top[turn] = broadcast(-__builtin_inff()), sum[turn] = zero();
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    Float z = scale * load_partial(logits + i, count);
    if (softcap > 0.0f) z = softcap * tanh(z * inverse_cap);
    store_partial(logits + i, z, count);
    const std::int64_t turn = i / kWidth % kTurns;
    top[turn] = max_or_second(select(iota() < static_cast<std::int32_t>(count), z, top[turn]), top[turn]);
  }
  float lanes[kTurns * kWidth], new_max[kTokens];
  for (std::int64_t turn = 0; turn < kTurns; ++turn) store(lanes + turn * kWidth, top[turn]);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    new_max[t] = max[t];
    for (std::int64_t i = t; i < kTurns * kWidth; i += kTokens)
      new_max[t] = lanes[i] > new_max[t] ? lanes[i] : new_max[t];
  }
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    const std::int64_t turn = i / kWidth % kTurns;
    const Float z = load_partial(logits + i, count);
    const Float e = exp(z - repeat<kTokens>(new_max + turn * kWidth));
    sum[turn] += select(iota() < static_cast<std::int32_t>(count), e, zero());
    const Float ratio = z * inverse_cap;
    store_partial(factors + i, e * (scale * (1.0f - ratio * ratio)), count);
  }
  for (std::int64_t turn = 0; turn < kTurns; ++turn) store(lanes + turn * kWidth, sum[turn]);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    float added = 0.0f;
    for (std::int64_t i = t; i < kTurns * kWidth; i += kTokens) added += lanes[i];
    // The first block finds max = -inf and sum 0.
    const float change[kWidth] = {max[t] - new_max[t]};
    rescale[t] = sum_exp[t] == 0.0f ? 0.0f : exp(load(change))[0];
    sum_exp[t] = sum_exp[t] * rescale[t] + added;
    max[t] = new_max[t];
  }
}

// ---- the visit
// -------------------------------------------------------------------------------------------------------

template <std::int64_t kTokens, class T>
void visit_rows(const HeadUnit<T>& unit, std::int64_t first_token, std::int64_t first_row, const T* const* rows,
                std::int64_t num_rows, const T* const* next, std::int64_t num_next) {
  alignas(64) float logits[kMaxGroup * kTokens];
  alignas(64) float factors[kMaxGroup * kTokens];
  float rescale[kTokens];
  float* accumulator = unit.accumulator + first_token * unit.depth;
  dot_rows<kTokens>(rows, num_rows, unit.hidden + first_token * unit.depth, unit.depth, logits);
  softmax_block<kTokens>(logits, num_rows, unit.scale, unit.softcap, unit.max + first_token, unit.sum_exp + first_token,
                         factors, rescale);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    float* to = unit.logits + (first_row + r) * unit.logits_stride + first_token;
    for (std::int64_t t = 0; t < kTokens; ++t) to[t] = logits[r * kTokens + t];
  }
  accumulate_rows<kTokens>(rows, num_rows, factors, rescale, unit.depth, accumulator, next, num_next);
}

template <class T>
void forward(const HeadUnit<T>& unit) {
  const std::int64_t row_bytes = unit.depth * static_cast<std::int64_t>(sizeof(T));
  std::int64_t group = kGroupBytes / row_bytes / 12 * 12;
  group = group < 12 ? 12 : (group > kMaxGroup ? kMaxGroup : group);

  for (std::int64_t t = 0; t < unit.tokens; ++t) unit.max[t] = -__builtin_inff(), unit.sum_exp[t] = 0.0f;
  for (std::int64_t i = 0; i < unit.tokens * unit.depth; ++i) unit.accumulator[i] = 0.0f;

  const T* pointers[2][kMaxGroup];
  const auto find_rows = [&](std::int64_t first, const T** rows) __attribute__((always_inline)) {
    const std::int64_t count = unit.num_ids - first < group ? unit.num_ids - first : group;
    for (std::int64_t r = 0; r < count; ++r) {
      rows[r] = unit.weight + (unit.ids[first + r] - unit.first_id) * unit.depth;
    }
    return count;
  };
  std::int64_t num_rows = find_rows(0, pointers[0]);
  for (std::int64_t first = 0, side = 0; first < unit.num_ids; first += group, side ^= 1) {
    const T* const* rows = pointers[side];
    const T** next = pointers[side ^ 1];
    const std::int64_t num_next = first + group < unit.num_ids ? find_rows(first + group, next) : 0;
    std::int64_t t = 0, prefetched = num_next;
    const auto visit = [&]<std::int64_t kTokens>() __attribute__((always_inline)) {
      for (; t + kTokens <= unit.tokens; t += kTokens, prefetched = 0) {
        visit_rows<kTokens>(unit, t, first, rows, num_rows, next, prefetched);
      }
    };
    visit.template operator()<8>();
    visit.template operator()<4>();
    visit.template operator()<2>();
    visit.template operator()<1>();
    num_rows = num_next;
  }
}

template <class T>
void finish(float* x, std::int64_t size, float factor, const T* row, float gold_factor) {
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    Float sum = factor == 0.0f ? zero() : factor * load_partial(x + i, count);
    if (row != nullptr) sum -= gold_factor * load_partial(row + i, count);
    store_partial(x + i, sum, count);
  }
}

}  // namespace

void head_forward(const HeadUnit<float>& unit) {
  forward(unit);
}
void head_forward(const HeadUnit<std::uint16_t>& unit) {
  forward(unit);
}

void head_delta(float* logits, std::int64_t rows, std::int64_t tokens, const float* max, const float* inverse_sum,
                const float* weight, float scale, float softcap) {
  const float inverse_cap = softcap > 0.0f ? 1.0f / softcap : 0.0f;
  const auto delta = [&](Float z, Float top, Float inverse, Float w) __attribute__((always_inline)) {
    const Float ratio = z * inverse_cap;
    const Float value = w * (exp(z - top) * inverse) * (scale * (1.0f - ratio * ratio));
    return select(w == 0.0f, zero(), value);
  };
  if (tokens == 1) {  // the rows themselves are the vector
    for (std::int64_t i = 0; i < rows; i += kWidth) {
      const std::int64_t count = rows - i < kWidth ? rows - i : kWidth;
      const Float z = load_partial(logits + i, count);
      store_partial(logits + i, delta(z, broadcast(*max), broadcast(*inverse_sum), broadcast(*weight)), count);
    }
    return;
  }
  for (std::int64_t j = 0; j < tokens; j += kWidth) {
    const std::int64_t count = tokens - j < kWidth ? tokens - j : kWidth;
    const Float top = load_partial(max + j, count), inverse = load_partial(inverse_sum + j, count);
    const Float w = load_partial(weight + j, count);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* z = logits + r * tokens + j;
      store_partial(z, delta(load_partial(z, count), top, inverse, w), count);
    }
  }
}

void finish_d_hidden(float* x, std::int64_t size, float factor, const float* row, float gold_factor) {
  finish(x, size, factor, row, gold_factor);
}
void finish_d_hidden(float* x, std::int64_t size, float factor, const std::uint16_t* row, float gold_factor) {
  finish(x, size, factor, row, gold_factor);
}

void add_row_gradient(const float* panel, const RowEntry* entries, std::int64_t num_entries, const float* deltas,
                      float* d_row, std::int64_t columns) {
  constexpr std::int64_t kVectors = 8;
  for (std::int64_t first = 0; first < columns; first += kVectors * kWidth) {
    Float sums[kVectors] = {};
    for (std::int64_t e = 0; e < num_entries; ++e) {
      const float* delta = deltas + entries[e].delta;
      const float* hidden = panel + entries[e].token * kPanelColumns + first;
      for (std::int64_t t = 0; t < entries[e].tokens; ++t, hidden += kPanelColumns) {
        const Float factor = broadcast(delta[t]);
        for (std::int64_t v = 0; v < kVectors; ++v) sums[v] = fma(factor, load(hidden + v * kWidth), sums[v]);
      }
    }
    for (std::int64_t v = 0; v < kVectors; ++v) {
      const std::int64_t begin = first + v * kWidth;
      const std::int64_t count = columns - begin < kWidth ? columns - begin : kWidth;
      if (count <= 0) break;
      store_partial(d_row + begin, load_partial(d_row + begin, count) + sums[v], count);
    }
  }
}

}  // namespace reprise::REPRISE_SIMD
