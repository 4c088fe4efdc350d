#pragma once

#include <cstdint>
#include <vector>

#include "loss/loss.hpp"

namespace reprise {

/// A head problem in double, before sharding: what every rank of a test builds for itself from the same seed.
struct HeadProblem {
  std::int64_t rows = 0, depth = 0;         // rows of the micro-batch, D
  std::int64_t vocab = 0, padded_rows = 0;  // real V; rows of W behind it that belong to no softmax
  std::vector<double> hidden;               // [rows, D]
  std::vector<double> weight;               // [V + padded, D]
  std::vector<std::int32_t> row, gold;      // [T]
  std::vector<float> token_weight;          // [T]
  CandidateTilesBuilder tiles;
  std::vector<std::int32_t> negatives;
  LossOptions options;

  [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(row.size()); }
  [[nodiscard]] LossBatch batch() const { return {row, gold, token_weight, tiles.view(), negatives, rows}; }
  [[nodiscard]] VocabPartition even(int tp) const { return VocabPartition::even(vocab + padded_rows, vocab, tp); }
};

struct HeadProblemOptions {
  std::int64_t rows = 13, depth = 20, vocab = 37, padded_rows = 3;
  std::int64_t tokens = 9, tile_tokens = 4, candidates = 6;  // candidates: sampled ids a token (gold comes on top)
  std::int64_t negatives = 0;
  double spread = 1.0;  // standard deviation of W: large values expose overflow
  std::uint64_t seed = 1;
  bool bfloat16 = false;  // values rounded to bfloat16, so that both storage types see the same problem
  LossOptions loss = {};
};

HeadProblem make_head_problem(const HeadProblemOptions& options);

/// The naive float64 answer for the whole problem.
struct HeadAnswer {
  std::vector<double> token_loss;                          // [T]
  std::vector<double> d_hidden;                            // [rows, D], of sum w l
  std::vector<double> d_weight;                            // [V + padded, D]
  std::vector<double> size_of_d_hidden, size_of_d_weight;  // the same sums of absolute terms: what rounding scales with
  std::vector<char> listed;                                // [V + padded] ids that some token lists
  double weighted_sum = 0.0, weight_sum = 0.0;
  std::int64_t weighted_tokens = 0;
};

HeadAnswer solve_head_problem(const HeadProblem& problem, Normalization normalization);

}  // namespace reprise
