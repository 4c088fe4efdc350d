#include "parallel/rank_order.hpp"

#include <algorithm>
#include <array>
#include <type_traits>

#include "core/error.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kBlock = 512;  // accumulators stay in L1
constexpr std::int64_t kGrain = 32 * kBlock;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <class A>
A combine(A sum, A value, ReduceOp op) {
  if (op == ReduceOp::kMax) {
    return value > sum || value != value ? value : sum;  // a NaN wins and then no value is above it
  }
  if constexpr (std::is_same_v<A, std::int64_t>) {
    return static_cast<A>(static_cast<std::uint64_t>(sum) + static_cast<std::uint64_t>(value));
  } else {
    return sum + value;
  }
}

template <class T, ReduceOp op>
void reduce_block(std::span<const void* const> inputs, T* output, std::int64_t begin, std::int64_t count) {
  std::array<Accumulator<T>, kBlock> sums;
  const T* first = static_cast<const T*>(inputs[0]) + begin;
  for (std::int64_t i = 0; i < count; ++i) sums[static_cast<std::size_t>(i)] = static_cast<Accumulator<T>>(first[i]);
  for (const void* input : inputs.subspan(1)) {
    const T* values = static_cast<const T*>(input) + begin;
    for (std::int64_t i = 0; i < count; ++i) {
      auto& sum = sums[static_cast<std::size_t>(i)];
      sum = combine(sum, static_cast<Accumulator<T>>(values[i]), op);
    }
  }
  for (std::int64_t i = 0; i < count; ++i) output[begin + i] = static_cast<T>(sums[static_cast<std::size_t>(i)]);
}

template <class T, ReduceOp op>
void reduce_all(const CpuStream& stream, std::span<const void* const> inputs, T* output, std::int64_t count) {
  stream.parallel_for(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; block += kBlock) {
      reduce_block<T, op>(inputs, output, block, std::min(kBlock, end - block));
    }
  });
}

template <class T>
void reduce_typed(const CpuStream& stream, std::span<const void* const> inputs, void* output, std::int64_t count,
                  ReduceOp op) {
  if (op == ReduceOp::kSum) {
    reduce_all<T, ReduceOp::kSum>(stream, inputs, static_cast<T*>(output), count);
  } else {
    reduce_all<T, ReduceOp::kMax>(stream, inputs, static_cast<T*>(output), count);
  }
}

}  // namespace

void reduce_in_rank_order(const Stream& stream, std::span<const void* const> inputs, void* output, std::int64_t count,
                          DType dtype, ReduceOp op) {
  REPRISE_CHECK(stream.is_cpu(), "sums over ranks in host memory need a CPU stream");
  REPRISE_CHECK(!inputs.empty(), "a sum over no ranks");
  switch (dtype) {
    case DType::kFloat32: return reduce_typed<float>(stream.cpu(), inputs, output, count, op);
    case DType::kFloat64: return reduce_typed<double>(stream.cpu(), inputs, output, count, op);
    case DType::kBFloat16: return reduce_typed<BFloat16>(stream.cpu(), inputs, output, count, op);
    case DType::kInt64: return reduce_typed<std::int64_t>(stream.cpu(), inputs, output, count, op);
    default: REPRISE_CHECK(false, "{} cannot be reduced over ranks", name_of(dtype));
  }
}

}  // namespace reprise
