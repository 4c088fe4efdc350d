#include "loss/sampled_negatives.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/loss/head_loss_check.hpp"

namespace reprise {
namespace {

/// One rank's dot products with the hidden state of a token, and what follows, in double.
struct NaiveToken {
  const HeadProblem& problem;
  Range own;
  std::int64_t token, tile = 0;

  NaiveToken(const HeadProblem& of, Range ids, std::int64_t t) : problem(of), own(ids), token(t) {
    while (problem.tiles.token_begin[static_cast<std::size_t>(tile) + 1] <= token) ++tile;
  }
  [[nodiscard]] std::vector<std::int32_t> candidates() const {
    const auto begin = problem.tiles.ids.begin();
    return {begin + problem.tiles.id_begin[static_cast<std::size_t>(tile)],
            begin + problem.tiles.id_begin[static_cast<std::size_t>(tile) + 1]};
  }
  [[nodiscard]] bool is_own(std::int32_t id) const { return own.begin <= id && id < own.end; }
  [[nodiscard]] double weight(std::int32_t id, std::int64_t c) const {
    return problem.weight[static_cast<std::size_t>(id * problem.depth + c)];
  }
  [[nodiscard]] double hidden(std::int64_t c) const {
    return problem.hidden[static_cast<std::size_t>(problem.row[static_cast<std::size_t>(token)] * problem.depth + c)];
  }
  [[nodiscard]] double logit(std::int32_t id) const {
    double x = 0.0;
    for (std::int64_t c = 0; c < problem.depth; ++c) x += hidden(c) * weight(id, c);
    x *= static_cast<double>(problem.options.logit_scale);
    const double cap = static_cast<double>(problem.options.softcap);
    return cap > 0.0 ? cap * std::tanh(x / cap) : x;
  }
  [[nodiscard]] double gain(double z) const {
    const double cap = static_cast<double>(problem.options.softcap);
    return static_cast<double>(problem.options.logit_scale) * (cap > 0.0 ? 1.0 - z * z / (cap * cap) : 1.0);
  }
  /// Negatives of all ranks outside the tile.
  [[nodiscard]] std::vector<std::int32_t> kept() const {
    std::vector<std::int32_t> ids;
    const auto listed = candidates();
    for (const std::int32_t id : problem.negatives) {
      if (!std::binary_search(listed.begin(), listed.end(), id)) ids.push_back(id);
    }
    return ids;
  }
  [[nodiscard]] double raise() const {
    return std::log(static_cast<double>(problem.vocab - std::ssize(candidates())) / static_cast<double>(kept().size()));
  }
};

VectorView<float> copy_on(const Context& context, const std::vector<float>& host) {
  const auto copy = context.arena.vector<float>(std::ssize(host));
  copy_to_device<float>(context.stream, host, copy);
  return copy;
}

/// Candidates are given as statistics and accumulator; forward must add the negatives of this rank to both, backward
/// their rows of d_weight.
template <class T>
void check_negatives(const HeadProblem& problem, const VocabPartition& vocab) {
  run_device_ranks(1, [&](Communicator& world) {
    HeadRank<T> rank(world, problem, problem.even(1), false);
    const Context context = rank.context();
    const Range own = vocab.ids(0);
    const std::int64_t tokens = problem.tokens(), depth = problem.depth;
    std::vector<TokenStatistics> given;
    std::vector<float> sums;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const NaiveToken naive(problem, own, t);
      TokenStatistics local{-std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
      std::vector<double> row(static_cast<std::size_t>(depth), 0.0);
      for (const std::int32_t id : naive.candidates()) {
        if (!naive.is_own(id)) continue;
        merge_statistics(local, static_cast<float>(naive.logit(id)), 1.0f);
      }
      for (const std::int32_t id : naive.candidates()) {
        if (!naive.is_own(id)) continue;
        const double z = naive.logit(id), factor = std::exp(z - static_cast<double>(local.max)) * naive.gain(z);
        for (std::int64_t c = 0; c < depth; ++c) row[static_cast<std::size_t>(c)] += factor * naive.weight(id, c);
      }
      given.push_back(local);
      for (const double x : row) sums.push_back(local.sum_exp == 0.0f ? std::nanf("") : static_cast<float>(x));
    }
    Buffer<TokenStatistics> local = to_device(rank.stream, given);
    Buffer<float> accumulator = to_device(rank.stream, sums);
    const SelectedRows<T> selected(context, rank.hidden_view(), problem.row, problem.rows);
    const HeadHidden<T> hidden = head_hidden(context, selected);
    const auto weight = rank.weight_view().row_range(own.begin, vocab.rows(0).size());
    SampledNegatives negatives;
    negatives.forward<T>(context, problem.batch(), hidden, weight, own, problem.vocab, problem.options, local.view(),
                         {accumulator.view(), tokens, depth});

    const double factors = factor_bound<T>(rank.stream) + 1e-5;
    const std::vector<TokenStatistics> found = to_host(rank.stream, local.view());
    const std::vector<float> gradient = to_host(rank.stream, accumulator.view());
    std::vector<float> max, inverse_sum;
    std::vector<double> d_weight(static_cast<std::size_t>(vocab.rows(0).size() * depth), 0.0), size = d_weight;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const NaiveToken naive(problem, own, t);
      const auto kept = naive.kept();
      double sum = 0.0;
      std::vector<double> row(static_cast<std::size_t>(depth), 0.0), row_size = row;
      const auto add = [&](std::int32_t id, double raise) {
        if (!naive.is_own(id)) return;
        const double z = naive.logit(id), e = std::exp(z + raise);
        sum += e;
        for (std::int64_t c = 0; c < depth; ++c) {
          row[static_cast<std::size_t>(c)] += e * naive.gain(z) * naive.weight(id, c);
          row_size[static_cast<std::size_t>(c)] += std::abs(e * naive.gain(z) * naive.weight(id, c));
        }
      };
      for (const std::int32_t id : naive.candidates()) add(id, 0.0);
      for (const std::int32_t id : kept) add(id, naive.raise());
      const TokenStatistics& token = found[static_cast<std::size_t>(t)];
      max.push_back(sum == 0.0 ? 0.0f : token.max);
      inverse_sum.push_back(sum == 0.0 ? 1.0f : 1.0f / token.sum_exp);
      ASSERT_EQ(token.sum_exp == 0.0f, sum == 0.0) << "token " << t;
      if (sum == 0.0) continue;
      ASSERT_NEAR(static_cast<double>(token.max) + std::log(static_cast<double>(token.sum_exp)), std::log(sum), 1e-5);
      const double scale = std::exp(static_cast<double>(token.max));
      for (std::int64_t c = 0; c < depth; ++c) {
        ASSERT_NEAR(static_cast<double>(gradient[static_cast<std::size_t>(t * depth + c)]) * scale,
                    row[static_cast<std::size_t>(c)], factors * row_size[static_cast<std::size_t>(c)])
            << "token " << t;
      }
      for (const std::int32_t id : kept) {
        if (!naive.is_own(id) || problem.token_weight[static_cast<std::size_t>(t)] == 0.0f) continue;
        const double z = naive.logit(id);
        const double delta = static_cast<double>(problem.token_weight[static_cast<std::size_t>(t)]) *
                             std::exp(z + naive.raise()) / sum * naive.gain(z);
        for (std::int64_t c = 0; c < depth; ++c) {
          d_weight[static_cast<std::size_t>((id - own.begin) * depth + c)] += delta * naive.hidden(c);
          size[static_cast<std::size_t>((id - own.begin) * depth + c)] += std::abs(delta * naive.hidden(c));
        }
      }
    }
    Buffer<float> d_rows = to_device(rank.stream, std::vector<float>(d_weight.size(), 0.0f));
    const CombinedStatistics combined{copy_on(context, max), copy_on(context, inverse_sum)};
    negatives.backward<T>(context, hidden, combined, copy_effective_weights(context, problem.batch()),
                          {d_rows.view(), vocab.rows(0).size(), depth});
    const std::vector<float> d_found = to_host(rank.stream, d_rows.view());
    for (std::size_t i = 0; i < d_found.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(d_found[i]), d_weight[i], factors * size[i]) << "element " << i;
    }
  });
}

TEST(SampledNegativesTest, AddToStatisticsAndGradients) {
  const std::vector<LossOptions> rules{{}, {.logit_scale = 0.5f, .softcap = 3.0f}};
  for (const LossOptions& rule : rules) {
    for (const std::int64_t negatives : {1, 9, 60}) {
      const HeadProblem problem = make_head_problem({.negatives = negatives, .bfloat16 = true, .loss = rule});
      for (const Range part : {Range{0, 40}, Range{0, 11}, Range{0, 0}}) {
        const VocabPartition vocab{{part.begin, part.end}, problem.vocab};
        check_negatives<float>(problem, vocab);
        check_negatives<BFloat16>(problem, vocab);
      }
    }
  }
}

}  // namespace
}  // namespace reprise
