#include "parallel/nccl_kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "parallel/rank_order.hpp"
#include "tests/support/device.hpp"

namespace reprise {

namespace {

template <class T>
T value_at(int rank, std::int64_t i) {
  const double value = std::sin(static_cast<double>(1000 * rank + i)) * std::pow(10.0, static_cast<double>(i % 7));
  if constexpr (std::is_same_v<T, BFloat16>) {
    return BFloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

/// The device's sums beside those of the CPU, whose order is the contract; `shift` elements off alignment.
template <class T>
void expect_same_bits(const Stream& stream, int ranks, int own_rank, std::int64_t count, std::int64_t shift) {
  const std::int64_t stride = count + 3, peers = own_rank < ranks ? ranks - 1 : ranks;
  std::vector<T> own_host(static_cast<std::size_t>(count + shift)),
      peers_host(static_cast<std::size_t>(peers * stride));
  std::vector<std::vector<T>> parts;
  for (int r = 0; r < ranks; ++r) {
    std::vector<T> part;
    for (std::int64_t i = 0; i < count; ++i) part.push_back(value_at<T>(r, i));
    const int slot = r < own_rank ? r : r - 1;
    std::copy(part.begin(), part.end(), r == own_rank ? own_host.begin() + shift : peers_host.begin() + slot * stride);
    parts.push_back(part);
  }
  std::vector<const void*> inputs;
  for (const auto& part : parts) inputs.push_back(part.data());
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
    std::vector<T> expected(static_cast<std::size_t>(count));
    reduce_in_rank_order(Stream(CpuStream{}), inputs, expected.data(), count, dtype_of<T>, op);
    auto own = to_device(stream, own_host);
    const auto others = to_device(stream, peers_host);
    Buffer<T> separate(stream, count, "output");
    const VectorView<T> place = own.view().slice(shift, count);
    for (const VectorView<T> output : {separate.view(), place}) {  // in place last
      const RankAddends addends{
          .own = place.data, .peers = others.view().data, .stride = stride, .rank = own_rank, .size = ranks};
      reduce_in_rank_order(stream.cuda(), addends, output.data, count, dtype_of<T>, op);
      const auto got = to_host(stream, output);
      EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(T)), 0)
          << name_of(dtype_of<T>) << ", rank " << own_rank << " of " << ranks << ", " << count << " elements";
    }
  }
}

TEST(NcclKernels, SumsHaveTheBitsOfTheCpu) {
  on_every_stream([](const Stream& stream) {
    for (const int ranks : {1, 2, 5}) {
      for (const int own_rank : {0, ranks - 1, ranks}) {
        for (const std::int64_t count : {1, 5, 61, 1024}) {  // stride + 3: aligned for 61 of 4-byte elements
          for (const std::int64_t shift : {0, 1}) {
            expect_same_bits<float>(stream, ranks, own_rank, count, shift);
            expect_same_bits<double>(stream, ranks, own_rank, count, shift);
            expect_same_bits<BFloat16>(stream, ranks, own_rank, count, shift);
            expect_same_bits<std::int64_t>(stream, ranks, own_rank, count, shift);
          }
        }
      }
    }
  });
}

TEST(NcclKernels, MaximumPropagatesNan) {
  const Stream& stream = test_stream();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto own = to_device(std::vector<float>{nan, 1.0f, 2.0f, 3.0f});
  const auto peers = to_device(std::vector<float>{1.0f, nan, 1.0f, 7.0f});
  Buffer<float> output(stream, 4, "output");
  const RankAddends addends{.own = own.view().data, .peers = peers.view().data, .stride = 4, .rank = 0, .size = 2};
  reduce_in_rank_order(stream.cuda(), addends, output.view().data, 4, DType::kFloat32, ReduceOp::kMax);
  const auto got = to_host(output);
  EXPECT_TRUE(std::isnan(got[0]) && std::isnan(got[1]));
  EXPECT_EQ(got[2], 2.0f);
  EXPECT_EQ(got[3], 7.0f);
}

TEST(NcclKernels, TheHostSeesHowFarTheStreamHasCome) {
  const Stream& stream = test_stream();
  HostBuffer<std::uint64_t> word(stream, 1, "word");
  word.view()[0] = 0;
  write_when_reached(stream.cuda(), word.view().data, 41);
  write_when_reached(stream.cuda(), word.view().data, 42);
  synchronize(stream);
  EXPECT_EQ(word.view()[0], 42u);
}

}  // namespace

}  // namespace reprise
