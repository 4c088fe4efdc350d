#include "tests/parallel/communicator_cases.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "core/error.hpp"
#include "core/transfer.hpp"
#include "parallel/agree.hpp"
#include "parallel/process_groups.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {

namespace {

std::uint64_t hash(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Element `index` of what `rank` brings: floats of very different sizes and both signs, so that another order of
/// summation gives other bits.
template <class T>
T element(int rank, std::int64_t index) {
  const std::uint64_t bits =
      hash(static_cast<std::uint64_t>(rank + 1) * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(index));
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits);
  } else {
    const double mantissa = static_cast<double>(bits >> 11) * 0x1.0p-52 - 1.0;
    return static_cast<T>(static_cast<float>(std::ldexp(mantissa, static_cast<int>(bits % 24))));
  }
}

template <class T>
std::vector<T> elements(int rank, std::int64_t count, std::int64_t first = 0) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(element<T>(rank, first + i));
  return values;
}

/// Sum or maximum over ranks of element `index`, in rank order.
template <class T>
T reduced(int ranks, std::int64_t index, ReduceOp op) {
  using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
  Sum total = static_cast<Sum>(element<T>(0, index));
  for (int r = 1; r < ranks; ++r) {
    const Sum value = static_cast<Sum>(element<T>(r, index));
    if (op == ReduceOp::kMax) {
      total = std::max(total, value);
    } else if constexpr (std::is_integral_v<T>) {
      total = static_cast<T>(static_cast<std::uint64_t>(total) + static_cast<std::uint64_t>(value));
    } else {
      total += value;
    }
  }
  return static_cast<T>(total);
}

template <class T>
std::vector<T> all_reduced(int ranks, std::int64_t count, ReduceOp op, std::int64_t first = 0) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(reduced<T>(ranks, first + i, op));
  return values;
}

template <class T>
testing::AssertionResult same_bits(const std::vector<T>& got, const std::vector<T>& expected) {
  if (got.size() != expected.size()) return testing::AssertionFailure() << got.size() << " != " << expected.size();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0) {
      return testing::AssertionFailure() << name_of(dtype_of<T>) << " differs at " << i << " of " << got.size();
    }
  }
  return testing::AssertionSuccess();
}

/// Uneven parts with empty ones: rank 1 has nothing, the others ever more.
std::vector<std::int64_t> uneven_counts(int ranks, std::int64_t unit) {
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(r == 1 ? 0 : unit * (r + 1) + r);
  return counts;
}

std::int64_t total_of(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}
std::int64_t offset_of(const std::vector<std::int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, std::int64_t{0});
}
std::int64_t count_of(const std::vector<std::int64_t>& counts, int rank) {
  return counts[static_cast<std::size_t>(rank)];
}

// Every verb on the stream's device, with its values brought there and back.
template <class T>
std::vector<T> all_reduce(Communicator& group, const Stream& stream, const std::vector<T>& values,
                          ReduceOp op = ReduceOp::kSum) {
  auto buffer = to_device(stream, values);
  group.all_reduce<T>(stream, buffer.view(), op);
  return to_host(stream, buffer.view());
}
template <class T>
std::vector<T> all_gather(Communicator& group, const Stream& stream, const std::vector<T>& input,
                          const std::vector<std::int64_t>& counts) {
  const auto own = to_device(stream, input);
  Buffer<T> output(stream, total_of(counts), "output");
  group.all_gather<T>(stream, own.view(), output.view(), counts);
  return to_host(stream, output.view());
}
template <class T>
std::vector<T> all_gather_in_place(Communicator& group, const Stream& stream, const std::vector<T>& input,
                                   const std::vector<std::int64_t>& counts) {
  Buffer<T> output(stream, total_of(counts), "output");
  const auto own = output.view().slice(offset_of(counts, group.rank()), count_of(counts, group.rank()));
  copy_to_device<T>(stream, input, own);
  group.all_gather<T>(stream, own, output.view(), counts);
  return to_host(stream, output.view());
}
template <class T>
std::vector<T> reduce_scatter(Communicator& group, const Stream& stream, const std::vector<T>& input,
                              const std::vector<std::int64_t>& counts) {
  const auto whole = to_device(stream, input);
  Buffer<T> output(stream, count_of(counts, group.rank()), "output");
  group.reduce_scatter<T>(stream, whole.view(), output.view(), counts);
  return to_host(stream, output.view());
}
template <class T>
std::vector<T> reduce_scatter_in_place(Communicator& group, const Stream& stream, const std::vector<T>& input,
                                       const std::vector<std::int64_t>& counts) {
  auto whole = to_device(stream, input);
  const auto own = whole.view().slice(offset_of(counts, group.rank()), count_of(counts, group.rank()));
  group.reduce_scatter<T>(stream, whole.view(), own, counts);
  return to_host(stream, own);
}
template <class T>
std::vector<T> all_to_all(Communicator& group, const Stream& stream, const std::vector<T>& input,
                          const std::vector<std::int64_t>& sent, const std::vector<std::int64_t>& received) {
  const auto send = to_device(stream, input);
  Buffer<T> receive(stream, total_of(received), "receive");
  group.all_to_all<T>(stream, send.view(), sent, receive.view(), received);
  return to_host(stream, receive.view());
}
template <class T>
std::vector<T> broadcast(Communicator& group, const Stream& stream, const std::vector<T>& values, int root) {
  auto buffer = to_device(stream, values);
  group.broadcast<T>(stream, buffer.view(), root);
  return to_host(stream, buffer.view());
}

template <class... T, class Body>
void for_types(const Body& body) {
  (body(T{}), ...);
}
template <class Body>
void for_every_type(const Body& body) {
  for_types<float, double, BFloat16, std::int32_t, std::int64_t, std::uint8_t, std::uint32_t, std::uint64_t>(body);
}

void all_reduce_is_exact(Communicator& group, const Stream& stream) {
  for_types<float, double, BFloat16, std::int64_t>([&](auto type) {
    using T = decltype(type);
    for (const std::int64_t count : {0, 1, 2, 5, 1000, 30011}) {
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
        const auto values = all_reduce(group, stream, elements<T>(group.rank(), count), op);
        EXPECT_TRUE(same_bits(values, all_reduced<T>(group.size(), count, op)));
      }
    }
  });
}

void maximum_propagates_nan(Communicator& group, const Stream& stream) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  for_types<float, double, BFloat16>([&](auto type) {
    using T = decltype(type);
    for (int bad = 0; bad < group.size(); ++bad) {
      const auto cast = [](double value) { return static_cast<T>(static_cast<float>(value)); };
      std::vector<T> values{cast(group.rank() == bad ? kNan : 5.0), cast(-kInf), cast(group.rank()), cast(-1.0)};
      values = all_reduce(group, stream, values, ReduceOp::kMax);
      EXPECT_TRUE(std::isnan(static_cast<double>(static_cast<float>(values[0]))));
      EXPECT_EQ(static_cast<float>(values[1]), -std::numeric_limits<float>::infinity());
      EXPECT_EQ(static_cast<float>(values[2]), static_cast<float>(group.size() - 1));
      EXPECT_EQ(static_cast<float>(values[3]), -1.0f);
    }
  });
}

void sums_of_infinities_are_ieee(Communicator& group, const Stream& stream) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> values{inf, group.rank() == 0 ? inf : -inf, std::numeric_limits<float>::quiet_NaN()};
  values = all_reduce(group, stream, values);
  EXPECT_EQ(values[0], inf);
  EXPECT_TRUE(group.size() == 1 ? values[1] == inf : std::isnan(values[1]));
  EXPECT_TRUE(std::isnan(values[2]));
}

void all_gather_joins_in_rank_order(Communicator& group, const Stream& stream) {
  for_every_type([&](auto type) {
    using T = decltype(type);
    for (const std::int64_t unit : {0, 1, 7, 2500}) {
      const auto counts = uneven_counts(group.size(), unit);
      const std::int64_t mine = count_of(counts, group.rank());
      std::vector<T> expected;
      for (int r = 0; r < group.size(); ++r) {
        const auto part = elements<T>(r, count_of(counts, r));
        expected.insert(expected.end(), part.begin(), part.end());
      }
      const auto input = elements<T>(group.rank(), mine);
      EXPECT_TRUE(same_bits(all_gather(group, stream, input, counts), expected));
      EXPECT_TRUE(same_bits(all_gather_in_place(group, stream, input, counts), expected));
    }
  });
}

void all_gather_of_equal_parts(Communicator& group, const Stream& stream) {
  const std::vector<std::int64_t> input{group.rank(), 10 * group.rank()};
  std::vector<std::int64_t> expected;
  for (int r = 0; r < group.size(); ++r) expected.insert(expected.end(), {r, 10 * r});
  const auto own = to_device(stream, input);
  Buffer<std::int64_t> output(stream, 2 * group.size(), "output");
  group.all_gather<std::int64_t>(stream, own.view(), output.view());
  EXPECT_EQ(to_host(stream, output.view()), expected);
}

void reduce_scatter_is_exact(Communicator& group, const Stream& stream) {
  for_types<float, double, BFloat16>([&](auto type) {
    using T = decltype(type);
    for (const std::int64_t unit : {0, 1, 9, 5000}) {
      const auto counts = uneven_counts(group.size(), unit);
      const std::int64_t begin = offset_of(counts, group.rank()), mine = count_of(counts, group.rank());
      const auto expected = all_reduced<T>(group.size(), mine, ReduceOp::kSum, begin);
      const auto input = elements<T>(group.rank(), total_of(counts));
      EXPECT_TRUE(same_bits(reduce_scatter(group, stream, input, counts), expected));
      EXPECT_TRUE(same_bits(reduce_scatter_in_place(group, stream, input, counts), expected));
    }
  });
}

void all_to_all_delivers_every_block(Communicator& group, const Stream& stream) {
  // Rank a sends (3 a + 5 b) mod 4 times `unit` elements to rank b: different for every pair, sometimes none.
  for_every_type([&](auto type) {
    using T = decltype(type);
    for (const std::int64_t unit : {0, 1, 600}) {
      const auto block = [&](int from, int to) { return unit * ((3 * from + 5 * to) % 4); };
      std::vector<std::int64_t> sent, received;
      std::vector<T> input, expected;
      for (int peer = 0; peer < group.size(); ++peer) {
        sent.push_back(block(group.rank(), peer));
        received.push_back(block(peer, group.rank()));
        const auto out = elements<T>(group.rank(), sent.back(), 1000 * peer);
        const auto in = elements<T>(peer, received.back(), 1000 * group.rank());
        input.insert(input.end(), out.begin(), out.end());
        expected.insert(expected.end(), in.begin(), in.end());
      }
      EXPECT_TRUE(same_bits(all_to_all(group, stream, input, sent, received), expected));
    }
  });
}

void broadcast_comes_from_every_root(Communicator& group, const Stream& stream) {
  for_every_type([&](auto type) {
    using T = decltype(type);
    for (int root = 0; root < group.size(); ++root) {
      for (const std::int64_t count : {0, 1, 3000}) {
        const auto values = broadcast(group, stream, elements<T>(group.rank(), count), root);
        EXPECT_TRUE(same_bits(values, elements<T>(root, count)));
      }
    }
  });
}

void long_buffers_go_in_rounds(Communicator& group, const Stream& stream) {
  const std::int64_t count = 2500003;
  const auto values = all_reduce(group, stream, elements<float>(group.rank(), count));
  EXPECT_TRUE(same_bits(values, all_reduced<float>(group.size(), count, ReduceOp::kSum)));
}

void many_small_calls_stay_in_step(Communicator& group, const Stream& stream) {
  for (int i = 0; i < 300; ++i) {
    std::vector<std::int64_t> value{group.rank() + i};
    value = all_reduce(group, stream, value, ReduceOp::kMax);
    ASSERT_EQ(value[0], group.size() - 1 + i);
    group.barrier();
  }
}

void split_orders_by_key_then_rank(Communicator& group, const Stream& stream) {
  // Three colours (some of one rank or none), reversed within a colour, then split once more.
  const int colour = group.rank() % 3;
  const auto part = group.split(colour, -group.rank(), "third");
  std::vector<std::int64_t> members;
  for (int r = group.size() - 1; r >= 0; --r) {
    if (r % 3 == colour) members.push_back(r);
  }
  EXPECT_EQ(part->name(), "third");
  ASSERT_EQ(part->size(), static_cast<int>(members.size()));
  EXPECT_EQ(members[static_cast<std::size_t>(part->rank())], group.rank());

  const std::vector<std::int64_t> one_each(members.size(), 1);
  EXPECT_EQ(all_gather<std::int64_t>(*part, stream, {group.rank()}, one_each), members);

  const auto alone = part->split(part->rank(), 0, "alone");
  EXPECT_EQ(alone->size(), 1);
  const auto same = group.split(0, 0, "same");  // equal keys keep the order of ranks
  EXPECT_EQ(same->rank(), group.rank());
  EXPECT_EQ(same->size(), group.size());
  alone->barrier();
  same->barrier();
}

void grid_has_tensor_fastest(Communicator& group, const Stream& stream) {
  for (int tensor = 1; tensor <= group.size(); ++tensor) {
    if (group.size() % tensor != 0) {
      expect_error(ErrorKind::kUsage, {"does not divide", fmt::format("1, ")},
                   [&] { (void)ProcessGroups::make(group, tensor); });
      continue;
    }
    const auto groups = ProcessGroups::make(group, tensor);
    EXPECT_EQ(groups.world, &group);
    EXPECT_EQ(groups.tp_size(), tensor);
    EXPECT_EQ(groups.dp_size(), group.size() / tensor);
    EXPECT_EQ(groups.dp_rank() * groups.tp_size() + groups.tp_rank(), group.rank());
    std::vector<std::int64_t> sum{group.rank()};
    sum = all_reduce(*groups.tp, stream, sum);
    EXPECT_EQ(sum[0], tensor * (groups.dp_rank() * tensor) + tensor * (tensor - 1) / 2);
  }
  expect_error(ErrorKind::kUsage, {"parallel.tensor = 0"}, [&] { (void)ProcessGroups::make(group, 0); });
}

void failures_are_agreed(Communicator& group, const Stream&) {
  agree(group, [] {});
  for (int first = 0; first < group.size(); ++first) {
    expect_error(ErrorKind::kDisk, {"no space on rank " + std::to_string(first) + "."}, [&] {
      agree(group, [&] {
        if (group.rank() >= first) fail(ErrorKind::kDisk, "no space on rank {}.", group.rank());
      });
    });
  }
  expect_error(ErrorKind::kInternal, {"vector"}, [&] { agree(group, [] { throw std::length_error("vector"); }); });
}

void expect_count(const Communicator& group, Collective verb, std::int64_t calls, std::int64_t bytes) {
  EXPECT_EQ(group.count(verb).calls, calls) << name_of(verb);
  EXPECT_EQ(group.count(verb).bytes, bytes) << name_of(verb) << " on rank " << group.rank() << " of " << group.size();
}

void calls_and_bytes_are_counted(Communicator& group, const Stream& stream) {
  const int ranks = group.size(), rank = group.rank();
  const auto counts = uneven_counts(ranks, 5);
  const std::int64_t total = total_of(counts), mine = count_of(counts, rank);
  const auto whole = static_cast<std::size_t>(total), own = static_cast<std::size_t>(mine);
  group.reset_counts();
  const std::vector<double> reduce(static_cast<std::size_t>(6 * ranks));
  static_cast<void>(all_reduce(group, stream, reduce));
  static_cast<void>(all_reduce(group, stream, reduce, ReduceOp::kMax));
  static_cast<void>(all_gather(group, stream, std::vector<BFloat16>(own), counts));
  static_cast<void>(reduce_scatter(group, stream, std::vector<float>(whole), counts));
  const std::vector<std::int64_t> to_each(static_cast<std::size_t>(ranks), 3);
  const std::vector<std::uint8_t> sent(static_cast<std::size_t>(3 * ranks));
  static_cast<void>(all_to_all(group, stream, sent, to_each, to_each));
  static_cast<void>(broadcast(group, stream, std::vector<std::int32_t>(10), 0));
  group.barrier();

  expect_count(group, Collective::kAllReduce, 2, 2 * 2 * (ranks - 1) * 6 * 8);
  expect_count(group, Collective::kAllGather, 1, mine * (ranks - 1) * 2);
  expect_count(group, Collective::kReduceScatter, 1, (total - mine) * 4);
  expect_count(group, Collective::kAllToAll, 1, 3 * (ranks - 1));
  expect_count(group, Collective::kBroadcast, 1, rank == 0 && ranks > 1 ? 40 : 0);
  expect_count(group, Collective::kBarrier, 1, 0);
  group.reset_counts();
  expect_count(group, Collective::kAllReduce, 0, 0);
}

void wrong_sizes_are_refused_before_anything_moves(Communicator& group, const Stream& stream) {
  const auto ranks = static_cast<std::size_t>(group.size());
  Buffer<float> small(stream, 2, "small"), big(stream, 2 * group.size() + 1, "big");
  const std::vector<std::int64_t> counts(ranks, 2), too_many(ranks + 1, 2);
  expect_error(ErrorKind::kInternal, {"[", "whole buffer holds"},
               [&] { group.all_gather<float>(stream, small.view(), big.view(), counts); });
  expect_error(ErrorKind::kInternal, {"counts for"},
               [&] { group.all_gather<float>(stream, small.view(), big.view(), too_many); });
  expect_error(ErrorKind::kInternal, {"elements where its count is"},
               [&] { group.reduce_scatter<float>(stream, big.view(), big.view(), counts); });
  expect_error(ErrorKind::kInternal, {"where the counts add to"},
               [&] { group.all_to_all<float>(stream, big.view(), counts, big.view(), counts); });
  expect_error(ErrorKind::kInternal, {"root"}, [&] { group.broadcast<float>(stream, small.view(), group.size()); });
  group.barrier();
}

}  // namespace

const std::vector<CommunicatorCase>& communicator_cases() {
  static const std::vector<CommunicatorCase> cases{
      {"AllReduceIsExact", all_reduce_is_exact},
      {"MaximumPropagatesNan", maximum_propagates_nan},
      {"SumsOfInfinitiesAreIeee", sums_of_infinities_are_ieee},
      {"AllGatherJoinsInRankOrder", all_gather_joins_in_rank_order},
      {"AllGatherOfEqualParts", all_gather_of_equal_parts},
      {"ReduceScatterIsExact", reduce_scatter_is_exact},
      {"AllToAllDeliversEveryBlock", all_to_all_delivers_every_block},
      {"BroadcastComesFromEveryRoot", broadcast_comes_from_every_root},
      {"LongBuffersGoInRounds", long_buffers_go_in_rounds},
      {"ManySmallCallsStayInStep", many_small_calls_stay_in_step},
      {"SplitOrdersByKeyThenRank", split_orders_by_key_then_rank},
      {"GridHasTensorFastest", grid_has_tensor_fastest},
      {"FailuresAreAgreed", failures_are_agreed},
      {"CallsAndBytesAreCounted", calls_and_bytes_are_counted},
      {"WrongSizesAreRefused", wrong_sizes_are_refused_before_anything_moves},
  };
  return cases;
}

}  // namespace reprise
