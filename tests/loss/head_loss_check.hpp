#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "loss/loss.hpp"
#include "parallel/process_groups.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/loss/head_loss_problem.hpp"

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

/// One rank's share of a head problem, and a context around it.
template <class T>
struct HeadRank {
  const HeadProblem& problem;
  VocabPartition vocab;
  Stream stream{CpuStream{}};
  ProcessGroups groups;
  Arena arena{stream};
  bool sequence_parallel;
  Range rows, ids;  // of hidden and of W
  std::vector<T> hidden, weight, d_hidden;
  std::vector<float> d_weight;

  static constexpr float kBefore = 0.5f;  // what d_weight holds before backward adds

  HeadRank(Communicator& world, const HeadProblem& head_problem, const VocabPartition& partition, bool sequence)
      : problem(head_problem),
        vocab(partition),
        groups(ProcessGroups::make(world, world.size())),
        sequence_parallel(sequence),
        rows(sequence ? even_shard(problem.rows, world.size(), world.rank()) : Range{0, problem.rows}),
        ids(vocab.rows(world.rank())),
        hidden(shard_of<T>(problem.hidden, problem.depth, rows)),
        weight(shard_of<T>(problem.weight, problem.depth, ids)),
        d_hidden(hidden.size(), T(77.0f)),
        d_weight(weight.size(), kBefore) {}

  [[nodiscard]] Context context() { return {stream, groups, arena, sequence_parallel}; }
  [[nodiscard]] MatrixView<const T> hidden_view() const { return {hidden.data(), rows.size(), problem.depth}; }
  [[nodiscard]] MatrixView<const T> weight_view() const { return {weight.data(), ids.size(), problem.depth}; }
  [[nodiscard]] MatrixView<T> d_hidden_view() { return {d_hidden.data(), rows.size(), problem.depth}; }
  [[nodiscard]] MatrixView<float> d_weight_view() { return {d_weight.data(), ids.size(), problem.depth}; }
};

/// What float32 sums may lose, relative to the sum of absolute terms; what travels in bfloat16
/// is rounded by 2^-8 before the sum over ranks and after it.
inline constexpr double kFloatBound = 2e-5;
template <class T>
inline constexpr double kTravelBound = std::is_same_v<T, float> ? kFloatBound : 0x1p-7 + kFloatBound;

template <class T>
void expect_gradients(const HeadRank<T>& rank, const HeadAnswer& answer) {
  const std::int64_t depth = rank.problem.depth;
  for (std::size_t i = 0; i < rank.d_hidden.size(); ++i) {
    const std::size_t j = i + static_cast<std::size_t>(rank.rows.begin * depth);
    ASSERT_NEAR(static_cast<double>(static_cast<float>(rank.d_hidden[i])), answer.d_hidden[j],
                kTravelBound<T> * answer.size_of_d_hidden[j] + 1e-9)
        << "d_hidden row " << static_cast<std::int64_t>(j) / depth;
  }
  for (std::size_t i = 0; i < rank.d_weight.size(); ++i) {
    const std::size_t j = i + static_cast<std::size_t>(rank.ids.begin * depth);
    const double before = static_cast<double>(rank.kBefore);
    if (answer.listed[j / static_cast<std::size_t>(depth)] == 0) {
      ASSERT_EQ(rank.d_weight[i], rank.kBefore) << "row " << static_cast<std::int64_t>(j) / depth << " is not listed";
    }
    ASSERT_NEAR(static_cast<double>(rank.d_weight[i]), answer.d_weight[j] + before,
                kFloatBound * (answer.size_of_d_weight[j] + before))
        << "d_weight row " << static_cast<std::int64_t>(j) / depth;
  }
}

/// Every rank holds the same bits.
inline void expect_same_bits(Communicator& world, const Stream& stream, VectorView<const float> values) {
  std::vector<float> all(static_cast<std::size_t>(values.size * world.size()));
  world.all_gather<float>(stream, values, all);
  for (std::int64_t i = 0; i < std::ssize(all); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(all[static_cast<std::size_t>(i)]),
              std::bit_cast<std::uint32_t>(values[i % values.size]));
  }
}

template <class T>
void expect_losses(const typename HeadLoss<T>::Output& output, const HeadAnswer& answer) {
  ASSERT_EQ(output.token_loss.size, std::ssize(answer.token_loss));
  for (std::int64_t t = 0; t < output.token_loss.size; ++t) {
    const double want = answer.token_loss[static_cast<std::size_t>(t)];
    ASSERT_NEAR(static_cast<double>(output.token_loss[t]), want, 3e-5 * (1.0 + std::abs(want))) << "token " << t;
  }
  EXPECT_NEAR(output.weighted_sum, answer.weighted_sum, 1e-4 * (1.0 + std::abs(answer.weighted_sum)));
  EXPECT_NEAR(output.weight_sum, answer.weight_sum, 1e-9);
  EXPECT_EQ(output.tokens, answer.weighted_tokens);
}

/// Forward and backward on this rank of `world` (all of it tensor-parallel) against the oracle.
template <class T>
void check_head_loss(Communicator& world, const HeadProblem& problem, Normalization normalization,
                     const VocabPartition& vocab, bool sequence_parallel) {
  HeadRank<T> rank(world, problem, vocab, sequence_parallel);
  const HeadAnswer answer = solve_head_problem(problem, normalization);
  const auto loss = make_head_loss<T>(normalization, vocab, problem.options);
  const Context context = rank.context();
  const auto output = loss->forward(context, rank.hidden_view(), rank.weight_view(), problem.batch());
  expect_losses<T>(output, answer);
  loss->backward(context, rank.weight_view(), rank.d_hidden_view(), rank.d_weight_view());
  expect_gradients(rank, answer);
  expect_same_bits(world, rank.stream, output.token_loss);
}

/// The same on `tp` threads.
template <class T>
void check_head_loss(int tp, const HeadProblem& problem, Normalization normalization, bool sequence_parallel) {
  run_ranks(tp, [&](Communicator& world) {
    check_head_loss<T>(world, problem, normalization, problem.even(tp), sequence_parallel);
  });
}

}  // namespace reprise
