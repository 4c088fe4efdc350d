#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "loss/loss.hpp"
#include "parallel/process_groups.hpp"
#include "tests/loss/head_loss_problem.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {

/// Rows [range) of a row-major double matrix, in storage type T.
template <class T>
std::vector<T> shard_of(const std::vector<double>& matrix, std::int64_t cols, Range range) {
  std::vector<T> part;
  for (std::int64_t i = range.begin * cols; i < range.end * cols; ++i) {
    part.push_back(T(static_cast<float>(matrix[static_cast<std::size_t>(i)])));
  }
  return part;
}

/// One rank's share of a head problem on the device of the tests, and a context around it.
template <class T>
struct HeadRank {
  const HeadProblem& problem;
  VocabPartition vocab;
  Stream stream;
  ProcessGroups groups;
  Arena arena{stream};
  bool sequence_parallel;
  Range rows, ids;  // of hidden and of W
  Buffer<T> hidden, weight, d_hidden;
  Buffer<float> d_weight;

  static constexpr float kBefore = 0.5f;  // what d_weight holds before backward adds

  HeadRank(Communicator& world, const HeadProblem& head_problem, const VocabPartition& partition, bool sequence,
           const Stream& on = test_stream())
      : problem(head_problem),
        vocab(partition),
        stream(on),
        groups(ProcessGroups::make(world, world.size())),
        sequence_parallel(sequence),
        rows(sequence ? even_shard(problem.rows, world.size(), world.rank()) : Range{0, problem.rows}),
        ids(vocab.rows(world.rank())),
        hidden(to_device(stream, shard_of<T>(problem.hidden, problem.depth, rows))),
        weight(to_device(stream, shard_of<T>(problem.weight, problem.depth, ids))),
        d_hidden(to_device(stream, std::vector<T>(static_cast<std::size_t>(hidden.size()), T(77.0f)))),
        d_weight(to_device(stream, std::vector<float>(static_cast<std::size_t>(weight.size()), kBefore))) {}

  [[nodiscard]] Context context() { return {stream, groups, arena, sequence_parallel}; }
  [[nodiscard]] MatrixView<const T> hidden_view() { return {hidden.view(), rows.size(), problem.depth}; }
  [[nodiscard]] MatrixView<const T> weight_view() { return {weight.view(), ids.size(), problem.depth}; }
  [[nodiscard]] MatrixView<T> d_hidden_view() { return {d_hidden.view(), rows.size(), problem.depth}; }
  [[nodiscard]] MatrixView<float> d_weight_view() { return {d_weight.view(), ids.size(), problem.depth}; }
  [[nodiscard]] std::vector<T> d_hidden_values() const { return to_host(stream, d_hidden.view()); }
  [[nodiscard]] std::vector<float> d_weight_values() const { return to_host(stream, d_weight.view()); }
};

/// What float32 sums may lose, relative to the sum of absolute terms; what travels in bfloat16
/// is rounded by 2^-8 before the sum over ranks and after it.
inline constexpr double kFloatBound = 2e-5;
template <class T>
inline constexpr double kTravelBound = std::is_same_v<T, float> ? kFloatBound : 0x1p-7 + kFloatBound;
/// On a GPU the factors of products with bfloat16 matrices are rounded to bfloat16.
template <class T>
double factor_bound(const Stream& stream) {
  return std::is_same_v<T, float> || stream.is_cpu() ? 0.0 : 0x1p-8;
}

template <class T>
void expect_gradients(const HeadRank<T>& rank, const HeadAnswer& answer) {
  const std::int64_t depth = rank.problem.depth;
  const double factors = factor_bound<T>(rank.stream);
  const std::vector<T> d_hidden = rank.d_hidden_values();
  for (std::size_t i = 0; i < d_hidden.size(); ++i) {
    const std::size_t j = i + static_cast<std::size_t>(rank.rows.begin * depth);
    ASSERT_NEAR(static_cast<double>(static_cast<float>(d_hidden[i])), answer.d_hidden[j],
                (kTravelBound<T> + factors) * answer.size_of_d_hidden[j] + 1e-9)
        << "d_hidden row " << static_cast<std::int64_t>(j) / depth;
  }
  const std::vector<float> d_weight = rank.d_weight_values();
  for (std::size_t i = 0; i < d_weight.size(); ++i) {
    const std::size_t j = i + static_cast<std::size_t>(rank.ids.begin * depth);
    const double before = static_cast<double>(rank.kBefore);
    if (answer.listed[j / static_cast<std::size_t>(depth)] == 0) {
      ASSERT_EQ(d_weight[i], rank.kBefore) << "row " << static_cast<std::int64_t>(j) / depth << " is not listed";
    }
    ASSERT_NEAR(static_cast<double>(d_weight[i]), answer.d_weight[j] + before,
                (kFloatBound + factors) * (answer.size_of_d_weight[j] + before))
        << "d_weight row " << static_cast<std::int64_t>(j) / depth;
  }
}

/// Every rank holds the same bits.
inline void expect_same_bits(Communicator& world, const std::vector<float>& values) {
  std::vector<float> all(values.size() * static_cast<std::size_t>(world.size()));
  world.all_gather<float>(Stream(CpuStream{}), values, all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(all[i]), std::bit_cast<std::uint32_t>(values[i % values.size()]));
  }
}

template <class T>
void expect_losses(const Stream& stream, const typename HeadLoss<T>::Output& output, const HeadAnswer& answer) {
  const std::vector<float> token_loss = to_host(stream, output.token_loss);
  ASSERT_EQ(token_loss.size(), answer.token_loss.size());
  for (std::size_t t = 0; t < token_loss.size(); ++t) {
    const double want = answer.token_loss[t];
    ASSERT_NEAR(static_cast<double>(token_loss[t]), want, 3e-5 * (1.0 + std::abs(want))) << "token " << t;
  }
  EXPECT_NEAR(output.weighted_sum, answer.weighted_sum, 1e-4 * (1.0 + std::abs(answer.weighted_sum)));
  EXPECT_NEAR(output.weight_sum, answer.weight_sum, 1e-9);
  EXPECT_EQ(output.tokens, answer.weighted_tokens);
}

/// Forward and backward of `loss` on this rank of `world` (all of it tensor-parallel) against the oracle.
template <class T>
void check_head_loss(Communicator& world, HeadLoss<T>& loss, const HeadProblem& problem, Normalization normalization,
                     const VocabPartition& vocab, bool sequence_parallel) {
  HeadRank<T> rank(world, problem, vocab, sequence_parallel);
  const HeadAnswer answer = solve_head_problem(problem, normalization);
  const Context context = rank.context();
  const auto output = loss.forward(context, rank.hidden_view(), rank.weight_view(), problem.batch());
  expect_losses<T>(rank.stream, output, answer);
  loss.backward(context, rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
  expect_gradients(rank, answer);
  expect_same_bits(world, to_host(rank.stream, output.token_loss));
}
template <class T>
void check_head_loss(Communicator& world, const HeadProblem& problem, Normalization normalization,
                     const VocabPartition& vocab, bool sequence_parallel) {
  const auto loss = make_head_loss<T>(normalization, vocab, problem.options);
  check_head_loss<T>(world, *loss, problem, normalization, vocab, sequence_parallel);
}

/// The same on `tp` threads.
template <class T>
void check_head_loss(int tp, const HeadProblem& problem, Normalization normalization, bool sequence_parallel) {
  run_device_ranks(tp, [&](Communicator& world) {
    check_head_loss<T>(world, problem, normalization, problem.even(tp), sequence_parallel);
  });
}

}  // namespace reprise
