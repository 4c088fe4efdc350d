#include "core/simd.hpp"
#include "loss/head_unit.hpp"  // plain structures only

namespace reprise::REPRISE_SIMD {

namespace {

constexpr std::int64_t kMaxTokens = 8;           // tokens of a register block
constexpr std::int64_t kMaxGroup = 48;           // rows visited together
constexpr std::int64_t kGroupBytes = 384 << 10;  // of rows: with H and dH of a block they fill most of L2
constexpr std::int64_t kAccumulators = REPRISE_SIMD_WIDTH == 16 ? 24 : 12;
constexpr std::int64_t kLine = 64;  // bytes

template <std::int64_t kTokens>
constexpr std::int64_t kBlockRows = kAccumulators / kTokens > 8 ? 8 : kAccumulators / kTokens;
template <std::int64_t kTokens>
constexpr std::int64_t kBlockVectors = 16 / kTokens > 8 ? 8 : 16 / kTokens;

// ---- packing: [depth / kWidth][kTokens][kWidth], zero behind depth. Rows as they lie would share cache sets, because
// their distance is mostly a power of two.

template <std::int64_t kTokens>
void pack(const float* rows, std::int64_t depth, float* packed) {
  for (std::int64_t i = 0; i < depth; i += kWidth) {
    const std::int64_t count = depth - i < kWidth ? depth - i : kWidth;
    for (std::int64_t t = 0; t < kTokens; ++t, packed += kWidth)
      store(packed, load_partial(rows + t * depth + i, count));
  }
}

template <std::int64_t kTokens>
void unpack(const float* packed, std::int64_t depth, float* rows) {
  for (std::int64_t i = 0; i < depth; i += kWidth) {
    const std::int64_t count = depth - i < kWidth ? depth - i : kWidth;
    for (std::int64_t t = 0; t < kTokens; ++t, packed += kWidth)
      store_partial(rows + t * depth + i, load(packed), count);
  }
}

// ---- logits: kRows rows of W times kTokens tokens, both streamed once

template <std::int64_t kRows, std::int64_t kTokens, class T>
REPRISE_SIMD_INLINE void dot_block(const T* const* rows, const float* hidden, std::int64_t depth, float* dots) {
  Float sums[kRows][kTokens] = {};
  const std::int64_t whole = depth - depth % kWidth;
  for (std::int64_t i = 0; i < whole; i += kWidth) {
    Float w[kRows];
    for (std::int64_t r = 0; r < kRows; ++r) w[r] = load(rows[r] + i);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Float h = in_register(load(hidden + i * kTokens + t * kWidth));
      for (std::int64_t r = 0; r < kRows; ++r) sums[r][t] = fma(w[r], h, sums[r][t]);
    }
  }
  if (whole < depth) {
    for (std::int64_t r = 0; r < kRows; ++r) {
      const Float w = load_partial(rows[r] + whole, depth - whole);
      for (std::int64_t t = 0; t < kTokens; ++t) {
        sums[r][t] = fma(w, load(hidden + whole * kTokens + t * kWidth), sums[r][t]);
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
  constexpr std::int64_t kRows = kBlockRows<kTokens>;
  std::int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows) {
    dot_block<kRows, kTokens>(rows + r, hidden, depth, dots + r * kTokens);
  }
  for (; r < num_rows; ++r) dot_block<1, kTokens>(rows + r, hidden, depth, dots + r * kTokens);
}

// ---- unnormalised dH: kTokens rows of the accumulator, kVectors vectors of columns at a time

/// Columns [column, column + kVectors kWidth), or where kPartial the last `rest` < kWidth ones.
template <std::int64_t kTokens, std::int64_t kVectors, bool kPartial, class T>
REPRISE_SIMD_INLINE void accumulate_block(const T* const* rows, std::int64_t num_rows, const float* factors,
                                          const float* rescale, std::int64_t column, std::int64_t rest,
                                          float* accumulator) {
  Float sums[kTokens][kVectors];
  float* packed = accumulator + column * kTokens;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t v = 0; v < kVectors; ++v) sums[t][v] = rescale[t] * load(packed + (v * kTokens + t) * kWidth);
  }
  for (std::int64_t r = 0; r < num_rows; ++r) {
    Float w[kVectors];
    for (std::int64_t v = 0; v < kVectors; ++v) {
      w[v] = kPartial ? load_partial(rows[r] + column, rest) : load(rows[r] + column + v * kWidth);
    }
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Float factor = broadcast(factors[r * kTokens + t]);
      for (std::int64_t v = 0; v < kVectors; ++v) sums[t][v] = fma(factor, w[v], sums[t][v]);
    }
  }
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t v = 0; v < kVectors; ++v) store(packed + (v * kTokens + t) * kWidth, sums[t][v]);
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
  constexpr std::int64_t kVectors = kBlockVectors<kTokens>;
  std::int64_t column = 0;
  for (; column + kVectors * kWidth <= depth; column += kVectors * kWidth) {
    prefetch_rows(next, num_next, column, kVectors * kWidth);
    accumulate_block<kTokens, kVectors, false>(rows, num_rows, factors, rescale, column, 0, accumulator);
  }
  for (; column + kWidth <= depth; column += kWidth) {
    accumulate_block<kTokens, 1, false>(rows, num_rows, factors, rescale, column, 0, accumulator);
  }
  if (column < depth) {
    accumulate_block<kTokens, 1, true>(rows, num_rows, factors, rescale, column, depth - column, accumulator);
  }
}

// ---- softmax of a block [num_rows, kTokens]; lane i of a vector belongs to token i % kTokens

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

template <std::int64_t kTokens, class T>
void visit_rows(const HeadUnit<T>& unit, std::int64_t first_token, std::int64_t first_row, const T* const* rows,
                std::int64_t num_rows, const float* hidden, float* accumulator, const T* const* next,
                std::int64_t num_next) {
  alignas(64) float logits[kMaxGroup * kTokens];
  alignas(64) float factors[kMaxGroup * kTokens];
  float rescale[kTokens];
  dot_rows<kTokens>(rows, num_rows, hidden, unit.depth, logits);
  softmax_block<kTokens>(logits, num_rows, unit.scale, unit.softcap, unit.max + first_token, unit.sum_exp + first_token,
                         factors, rescale);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    float* to = unit.logits + (first_row + r) * unit.logits_stride + first_token;
    for (std::int64_t t = 0; t < kTokens; ++t) to[t] = logits[r * kTokens + t];
  }
  accumulate_rows<kTokens>(rows, num_rows, factors, rescale, unit.depth, accumulator, next, num_next);
}

/// body.operator()<kTokens>(first token) for blocks of 8, 4, 2 and 1 tokens that cover the unit.
template <class Body>
REPRISE_SIMD_INLINE void for_each_block(std::int64_t tokens, const Body& body) {
  std::int64_t t = 0;
  for (; t + 8 <= tokens; t += 8) body.template operator()<8>(t);
  if (t + 4 <= tokens) body.template operator()<4>(t), t += 4;
  if (t + 2 <= tokens) body.template operator()<2>(t), t += 2;
  if (t < tokens) body.template operator()<1>(t);
}

/// Pointers to the rows of the candidates [first, first + group) or as many as there are; returns their number.
template <class T>
std::int64_t find_rows(const HeadUnit<T>& unit, std::int64_t first, std::int64_t group, const T** rows) {
  const std::int64_t left = unit.num_ids > first ? unit.num_ids - first : 0;
  const std::int64_t count = left < group ? left : group;
  for (std::int64_t r = 0; r < count; ++r) rows[r] = unit.weight + (unit.ids[first + r] - unit.first_id) * unit.depth;
  return count;
}

template <class T>
void forward(const HeadUnit<T>& unit) {
  const std::int64_t row_bytes = unit.depth * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t step = unit.tokens < 4 ? 8 : 12;  // a multiple of every kBlockRows in use
  std::int64_t group = kGroupBytes / row_bytes / step * step;
  group = group < step ? step : (group > kMaxGroup ? kMaxGroup : group);

  const std::int64_t padded_depth = (unit.depth + kWidth - 1) / kWidth * kWidth;
  float* hidden = unit.scratch;
  float* accumulator = unit.scratch + unit.tokens * padded_depth;
  for_each_block(unit.tokens, [&]<std::int64_t kTokens>(std::int64_t t) {
    pack<kTokens>(unit.hidden + t * unit.depth, unit.depth, hidden + t * padded_depth);
  });
  for (std::int64_t i = 0; i < unit.tokens * padded_depth; i += kWidth) store(accumulator + i, zero());
  for (std::int64_t t = 0; t < unit.tokens; ++t) unit.max[t] = -__builtin_inff(), unit.sum_exp[t] = 0.0f;

  const T* pointers[2][kMaxGroup];
  std::int64_t num_rows = find_rows(unit, 0, group, pointers[0]);
  for (std::int64_t first = 0, side = 0; first < unit.num_ids; first += group, side ^= 1) {
    const T** next = pointers[side ^ 1];
    const std::int64_t num_next = find_rows(unit, first + group, group, next);
    for_each_block(unit.tokens, [&]<std::int64_t kTokens>(std::int64_t t) {
      visit_rows<kTokens>(unit, t, first, pointers[side], num_rows, hidden + t * padded_depth,
                          accumulator + t * padded_depth, next, t + kTokens == unit.tokens ? num_next : 0);
    });
    num_rows = num_next;
  }
  for_each_block(unit.tokens, [&]<std::int64_t kTokens>(std::int64_t t) {
    unpack<kTokens>(accumulator + t * padded_depth, unit.depth, unit.accumulator + t * unit.depth);
  });
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

}  // namespace reprise::REPRISE_SIMD
