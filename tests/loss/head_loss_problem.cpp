#include "tests/loss/head_loss_problem.hpp"

#include <algorithm>
#include <cmath>
#include <random>

#include "core/dtype.hpp"

namespace reprise {

namespace {

struct Candidate {
  std::int64_t id;
  double raise;  // added to the logit: log((V - |U|) / n') of a sampled negative
};

class Draws {
 public:
  explicit Draws(std::uint64_t seed) : random_(seed) {}

  std::vector<double> normal(std::int64_t count, double spread, bool bfloat16) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& value : values) {
      const auto single = static_cast<float>(spread * normal_(random_));
      value = static_cast<double>(bfloat16 ? static_cast<float>(BFloat16(single)) : single);
    }
    return values;
  }
  std::int32_t below(std::int64_t bound) {
    return static_cast<std::int32_t>(random_() % static_cast<std::uint64_t>(bound));
  }
  /// `count` different numbers below `bound`, sorted.
  std::vector<std::int32_t> subset(std::int64_t bound, std::int64_t count) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(bound));
    for (std::int64_t i = 0; i < bound; ++i) all[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    std::shuffle(all.begin(), all.end(), random_);
    all.resize(static_cast<std::size_t>(count));
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

template <class Id>
void make_unique(std::vector<Id>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

std::vector<Candidate> whole_vocabulary(const HeadProblem& problem) {
  std::vector<Candidate> candidates;
  for (std::int64_t id = 0; id < problem.vocab; ++id) candidates.push_back({id, 0.0});
  return candidates;
}

std::vector<Candidate> tile_candidates(const HeadProblem& problem, std::int64_t token) {
  std::size_t tile = 0;
  while (problem.tiles.token_begin[tile + 1] <= token) ++tile;
  const auto begin = problem.tiles.ids.begin() + problem.tiles.id_begin[tile];
  const auto end = problem.tiles.ids.begin() + problem.tiles.id_begin[tile + 1];
  std::vector<Candidate> candidates;
  for (auto id = begin; id != end; ++id) candidates.push_back({*id, 0.0});
  std::vector<std::int64_t> kept;
  for (const std::int32_t id : problem.negatives) {
    if (std::find(begin, end, id) == end) kept.push_back(id);
  }
  const double others = static_cast<double>(problem.vocab - (end - begin));
  for (const std::int64_t id : kept) candidates.push_back({id, std::log(others / static_cast<double>(kept.size()))});
  return candidates;
}

/// One token: its loss, and its part of the gradients.
void solve_token(const HeadProblem& problem, const std::vector<Candidate>& candidates, std::int64_t t,
                 HeadAnswer& answer) {
  const auto at = static_cast<std::size_t>(t);
  const double* h = problem.hidden.data() + problem.row[at] * problem.depth;
  const bool ignored = problem.gold[at] == -100;
  const double weight = ignored ? 0.0 : static_cast<double>(problem.token_weight[at]);
  const double cap = static_cast<double>(problem.options.softcap);
  std::vector<double> logits, slopes;
  double max = -1e300, sum = 0.0, gold_logit = 0.0;
  for (const Candidate& candidate : candidates) {
    double x = 0.0;
    for (std::int64_t i = 0; i < problem.depth; ++i) {
      x += h[i] * problem.weight[static_cast<std::size_t>(candidate.id * problem.depth + i)];
    }
    x *= static_cast<double>(problem.options.logit_scale);
    const double z = cap > 0.0 ? cap * std::tanh(x / cap) : x;
    slopes.push_back(static_cast<double>(problem.options.logit_scale) * (cap > 0.0 ? 1.0 - z * z / (cap * cap) : 1.0));
    logits.push_back(z + candidate.raise);
    if (candidate.id == problem.gold[at]) gold_logit = z;
    max = std::max(max, logits.back());
  }
  for (const double z : logits) sum += std::exp(z - max);
  answer.token_loss.push_back(ignored ? 0.0 : max + std::log(sum) - gold_logit);
  answer.weighted_sum += weight * answer.token_loss.back();
  answer.weight_sum += weight;
  answer.weighted_tokens += weight > 0.0 ? 1 : 0;
  for (std::size_t k = 0; k < candidates.size(); ++k) {
    const double p = std::exp(logits[k] - max) / sum;
    const double is_gold = candidates[k].id == problem.gold[at] ? 1.0 : 0.0;
    const double delta = weight * (p - is_gold) * slopes[k];
    const double size = weight * (p + is_gold) * std::abs(slopes[k]);
    answer.listed[static_cast<std::size_t>(candidates[k].id)] = 1;
    for (std::int64_t i = 0; i < problem.depth; ++i) {
      const auto in_h = static_cast<std::size_t>(problem.row[at] * problem.depth + i);
      const auto in_w = static_cast<std::size_t>(candidates[k].id * problem.depth + i);
      answer.d_hidden[in_h] += delta * problem.weight[in_w];
      answer.size_of_d_hidden[in_h] += size * std::abs(problem.weight[in_w]);
      answer.d_weight[in_w] += delta * problem.hidden[in_h];
      answer.size_of_d_weight[in_w] += size * std::abs(problem.hidden[in_h]);
    }
  }
}

}  // namespace

HeadProblem make_head_problem(const HeadProblemOptions& options) {
  Draws draws(options.seed);
  HeadProblem problem;
  problem.rows = options.rows, problem.depth = options.depth;
  problem.vocab = options.vocab, problem.padded_rows = options.padded_rows;
  problem.options = options.loss;
  problem.hidden = draws.normal(options.rows * options.depth, 1.0, options.bfloat16);
  problem.weight =
      draws.normal((options.vocab + options.padded_rows) * options.depth, options.spread, options.bfloat16);
  // Padded rows so large that one logit of them would show in every sum.
  for (std::int64_t i = options.vocab * options.depth; i < std::ssize(problem.weight); ++i) {
    problem.weight[static_cast<std::size_t>(i)] *= 64.0;
  }

  problem.row = draws.subset(options.rows, options.tokens);
  SampleRecords records;
  for (std::int64_t t = 0; t < options.tokens; ++t) {
    const std::int32_t gold = draws.below(options.vocab);
    problem.gold.push_back(gold);
    problem.token_weight.push_back(static_cast<float>(draws.below(8)) * 0.25f);  // zeros included
    std::vector<std::uint32_t> set{static_cast<std::uint32_t>(gold)};
    for (std::int64_t k = 0; k < options.candidates; ++k) {
      set.push_back(static_cast<std::uint32_t>(draws.below(options.vocab)));
    }
    make_unique(set);
    records.position.push_back(static_cast<std::uint32_t>(t));
    records.gold.push_back(static_cast<std::uint32_t>(gold));
    records.ids.insert(records.ids.end(), set.begin(), set.end());
    records.id_begin.push_back(std::ssize(records.ids));
  }
  problem.tiles.append(records, std::vector<std::uint8_t>(static_cast<std::size_t>(options.tokens), 1),
                       options.tile_tokens);
  for (std::int64_t i = 0; i < options.negatives; ++i) problem.negatives.push_back(draws.below(options.vocab));
  make_unique(problem.negatives);
  return problem;
}

HeadAnswer solve_head_problem(const HeadProblem& problem, Normalization normalization) {
  HeadAnswer answer;
  answer.d_hidden.assign(problem.hidden.size(), 0.0);
  answer.d_weight.assign(problem.weight.size(), 0.0);
  answer.size_of_d_hidden = answer.d_hidden;
  answer.size_of_d_weight = answer.d_weight;
  answer.listed.assign(static_cast<std::size_t>(problem.vocab + problem.padded_rows), 0);
  for (std::int64_t t = 0; t < problem.tokens(); ++t) {
    const auto candidates =
        normalization == Normalization::kFull ? whole_vocabulary(problem) : tile_candidates(problem, t);
    solve_token(problem, candidates, t, answer);
  }
  return answer;
}

}  // namespace reprise
