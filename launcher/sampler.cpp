#include "launcher/sampler.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/math.hpp"
#include "core/random.hpp"
#include "core/transfer.hpp"
#include "launcher/arg_max.hpp"
#include "loss/softmax.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kFirstCandidates = 256;

double weight_of(Candidate candidate, std::int32_t reference) {
  return std::exp(static_cast<double>(value_of(candidate)) - reference * std::numbers::ln2);
}

/// The first tokens of the line and the mass of all tokens, relative to e^reference.
struct Line {
  std::vector<Candidate> tokens;
  std::vector<double> weights;
  double total = 0.0;

  Line(std::span<const ShardOfRow> shards, std::int64_t known) {
    float max = -std::numeric_limits<float>::infinity();
    for (const ShardOfRow& shard : shards) {
      tokens.insert(tokens.end(), shard.sorted.begin(), shard.sorted.end());
      max = std::max(max, shard.statistics.max);
    }
    std::sort(tokens.begin(), tokens.end());
    tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(known)));
    const std::int32_t reference = reference_exponent(max);
    for (const ShardOfRow& shard : shards) {
      if (shard.statistics.sum_exp == 0.0) continue;
      total += std::ldexp(shard.statistics.sum_exp, reference_exponent(shard.statistics.max) - reference);
    }
    // The float32 terms of the largest logits give way to float64 ones.
    std::vector<float> rounded(tokens.size());
    sum_exp_terms(tokens, reference, rounded);
    total = std::max(0.0, total - std::accumulate(rounded.begin(), rounded.end(), 0.0));
    for (const Candidate token : tokens) weights.push_back(weight_of(token, reference));
    total += std::accumulate(weights.begin(), weights.end(), 0.0);
  }
};

/// The largest logit of every row over all ranks, the smallest id among equals.
std::vector<Candidate> take_largest(const Context& context, const Stream& host, MatrixView<const float> logits,
                                    std::int64_t first_id) {
  Communicator& tp = *context.groups.tp;
  const auto best = context.arena.vector<ArgMax>(logits.rows, "largest logits");
  arg_max_rows(context.stream, logits, best);
  std::vector<double> own;
  const auto on_this_host = on_host(context.stream, best);
  for (const ArgMax& row : on_this_host.view()) {
    own.push_back(static_cast<double>(row.value));
    own.push_back(row.col < 0 ? -1.0 : static_cast<double>(first_id + row.col));
  }
  std::vector<double> all(own.size() * static_cast<std::size_t>(tp.size()));
  tp.all_gather<double>(host, own, all);
  std::vector<Candidate> largest;
  for (std::size_t row = 0; row < own.size(); row += 2) {
    Candidate found = std::numeric_limits<Candidate>::max();
    for (std::size_t at = row; at < all.size(); at += own.size()) {
      if (all[at + 1] < 0.0) continue;  // a rank without vocabulary has no choice
      found = std::min(found, make_candidate(static_cast<float>(all[at]), static_cast<std::uint32_t>(all[at + 1])));
    }
    largest.push_back(found);
  }
  return largest;
}

/// log sum exp z of every row over all ranks.
std::vector<double> log_sums(const Context& context, const Stream& host, MatrixView<const float> logits) {
  Communicator& tp = *context.groups.tp;
  const std::vector<std::int32_t> none(static_cast<std::size_t>(logits.rows), -1);
  const auto gold = context.arena.vector<std::int32_t>(logits.rows, "no golds");
  copy_to_device<std::int32_t>(context.stream, none, gold);
  const auto statistics = context.arena.vector<TokenStatistics>(logits.rows, "softmax statistics");
  clear_statistics(context.stream, statistics);
  add_statistics(context.stream, logits, gold, 0, statistics);
  std::vector<double> own;
  const auto on_this_host = on_host(context.stream, statistics);
  for (const TokenStatistics& row : on_this_host.view()) {
    own.insert(own.end(), {static_cast<double>(row.max), static_cast<double>(row.sum_exp)});
  }
  std::vector<double> all(own.size() * static_cast<std::size_t>(tp.size()));
  tp.all_gather<double>(host, own, all);
  std::vector<double> sums;
  for (std::size_t row = 0; row < own.size(); row += 2) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (std::size_t at = row; at < all.size(); at += own.size()) max = std::max(max, all[at]);
    for (std::size_t at = row; at < all.size(); at += own.size()) {
      if (all[at + 1] != 0.0) sum += all[at + 1] * std::exp(all[at] - max);
    }
    sums.push_back(max + std::log(sum));
  }
  return sums;
}

/// The draws of one step: rounds of more and more candidates for the documents that need them.
class Draw {
 public:
  Draw(const Context& context, const Stream& host, MatrixView<float> logits, const VocabPartition& vocab,
       const SamplingRule& rule, std::span<const DrawPlace> places)
      : context_(context), host_(host), logits_(logits), vocab_(vocab), rule_(rule), places_(places) {}

  std::vector<Candidate> run() {
    std::vector<Candidate> drawn(places_.size());
    std::vector<std::int32_t> open(places_.size());
    std::iota(open.begin(), open.end(), 0);
    for (std::int64_t known = std::max(kFirstCandidates, rule_.top_k); !open.empty();) {
      known = std::min(known, vocab_.vocab_size);
      open = round(open, known, drawn);
      REPRISE_CHECK(open.empty() || known < vocab_.vocab_size, "all tokens are not enough for a draw");
      known = known < kMostCudaCandidates ? kMostCudaCandidates : vocab_.vocab_size;
    }
    return drawn;
  }

 private:
  /// This rank's statistics and first candidates, sorted, of some rows: [rows][2 + candidates] words.
  std::vector<std::uint64_t> find_own(const std::vector<std::int32_t>& rows, std::int64_t known) {
    const Arena::Scope scope(context_.arena);
    const auto count = static_cast<std::int64_t>(rows.size());
    MatrixView<float> some = logits_;
    if (count < logits_.rows) {
      const auto index = context_.arena.vector<std::int32_t>(count, "open documents");
      copy_to_device<std::int32_t>(context_.stream, rows, index);
      some = context_.arena.matrix<float>(count, logits_.cols, "logits of open documents");
      gather_rows<float>(context_.stream, logits_, index, some);
    }
    if (context_.stream.is_cpu() || known <= kMostCudaCandidates) {
      return words_of(context_.stream, context_.arena, some, known);
    }
    std::vector<float> copy = to_host(context_.stream, some.flat());
    Arena arena(host_);
    return words_of(host_, arena, {copy.data(), some.rows, some.cols}, known);
  }

  std::vector<std::uint64_t> words_of(const Stream& stream, Arena& arena, MatrixView<float> logits,
                                      std::int64_t known) {
    const std::int64_t first_id = vocab_.ids(context_.groups.tp_rank()).begin, width = std::min(known, logits.cols);
    const auto gold = arena.vector<std::int32_t>(logits.rows, "no golds");
    const std::vector<std::int32_t> none(static_cast<std::size_t>(logits.rows), -1);
    copy_to_device<std::int32_t>(stream, none, gold);
    const auto statistics = arena.vector<ShardStatistics>(logits.rows, "statistics of the shard");
    const auto candidates = arena.matrix<Candidate>(logits.rows, width, "candidates of the shard");
    local_top_k(stream, arena, logits, {}, first_id, known, gold, statistics, candidates);
    const auto found = on_host(stream, statistics);
    const auto tokens = on_host(stream, candidates.flat());
    std::vector<std::uint64_t> words;
    for (std::int64_t row = 0; row < logits.rows; ++row) {
      words.push_back(std::bit_cast<std::uint64_t>(found.view()[row].sum_exp));
      words.push_back(std::bit_cast<std::uint32_t>(found.view()[row].max));
      const auto begin = static_cast<std::ptrdiff_t>(words.size());
      const VectorView<const Candidate> of_row = tokens.view().slice(row * width, width);
      words.insert(words.end(), of_row.begin(), of_row.end());
      std::sort(words.begin() + begin, words.end());
    }
    return words;
  }

  /// Draws for the open documents and returns those that need more candidates.
  std::vector<std::int32_t> round(const std::vector<std::int32_t>& open, std::int64_t known,
                                  std::vector<Candidate>& drawn) {
    Communicator& tp = *context_.groups.tp;
    const std::vector<std::uint64_t> own = find_own(open, known);
    std::vector<std::int64_t> counts, begins{0};
    for (int r = 0; r < tp.size(); ++r) {
      counts.push_back(std::ssize(open) * words_per_row(r, known));
      begins.push_back(begins.back() + counts.back());
    }
    std::vector<std::uint64_t> all(static_cast<std::size_t>(begins.back()));
    tp.all_gather<std::uint64_t>(host_, own, all, counts);
    std::vector<std::uint8_t> done(open.size(), 0);
    host_.cpu().parallel_for(std::ssize(open), 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const auto at = static_cast<std::size_t>(i), document = static_cast<std::size_t>(open[at]);
        std::vector<ShardOfRow> shards;
        for (int r = 0; r < tp.size(); ++r) {
          const std::int64_t width = words_per_row(r, known);
          const auto begin = static_cast<std::size_t>(begins[static_cast<std::size_t>(r)] + i * width);
          shards.push_back(read_shard(std::span(all).subspan(begin, static_cast<std::size_t>(width))));
        }
        const double uniform = uniform_draw(rule_.seed, places_[document]);
        // A shard that is not finite says so by its maximum; the caller looks at the values.
        const bool bad = std::any_of(shards.begin(), shards.end(),
                                     [](const ShardOfRow& shard) { return std::isnan(shard.statistics.max); });
        const auto token = bad ? make_candidate(std::numeric_limits<float>::infinity(), 0)
                               : draw_token(shards, known, vocab_.vocab_size, rule_, uniform);
        done[at] = token.has_value() ? 1 : 0;
        if (token) drawn[document] = *token;
      }
    });
    std::vector<std::int32_t> rest;
    for (std::size_t i = 0; i < open.size(); ++i) {
      if (done[i] == 0) rest.push_back(open[i]);
    }
    return rest;
  }

  [[nodiscard]] std::int64_t words_per_row(int rank, std::int64_t known) const {
    return 2 + std::min(known, vocab_.ids(rank).size());
  }
  static ShardOfRow read_shard(std::span<const std::uint64_t> words) {
    const float max = std::bit_cast<float>(static_cast<std::uint32_t>(words[1]));
    return {{std::bit_cast<double>(words[0]), max, 0.0f}, words.subspan(2)};
  }

  const Context& context_;
  const Stream& host_;
  MatrixView<float> logits_;
  const VocabPartition& vocab_;
  const SamplingRule& rule_;
  std::span<const DrawPlace> places_;
};

}  // namespace

void check_sampling_rule(const SamplingRule& rule) {
  constexpr double kColdest = 1e-3;  // colder logits would leave float32's exact range
  require(rule.temperature == 0.0 || (rule.temperature >= kColdest && std::isfinite(rule.temperature)),
          ErrorKind::kUsage, "--temperature {}: must be 0 (the most probable token) or at least {}", rule.temperature,
          kColdest);
  require(rule.top_k >= 0, ErrorKind::kUsage, "--top-k {}: must not be negative (0 = all tokens)", rule.top_k);
  require(rule.top_p > 0.0 && rule.top_p <= 1.0, ErrorKind::kUsage, "--top-p {}: must lie in (0, 1]", rule.top_p);
}

double uniform_draw(std::uint64_t seed, const DrawPlace& place) {
  return random_uniform(random_bits(seed, place.prompt, place.sample), place.position);
}

std::optional<Candidate> draw_token(std::span<const ShardOfRow> shards, std::int64_t known, std::int64_t vocab_size,
                                    const SamplingRule& rule, double uniform) {
  const Line line(shards, known);
  std::size_t count = line.tokens.size();
  bool is_whole = static_cast<std::int64_t>(count) == vocab_size;  // nothing stands behind the known ones
  double mass = line.total;
  if (rule.top_k > 0 && rule.top_k <= static_cast<std::int64_t>(count)) {
    count = static_cast<std::size_t>(rule.top_k);
    is_whole = true;
    mass = std::accumulate(line.weights.begin(), line.weights.begin() + rule.top_k, 0.0);
  }
  if (rule.top_p < 1.0) {
    const double wanted = rule.top_p * mass * (1.0 - 0x1p-40);
    double sum = 0.0;
    std::size_t fewest = 0;
    while (fewest < count && sum < wanted) sum += line.weights[fewest++];
    if (sum < wanted && !is_whole) return std::nullopt;
    count = fewest;
    is_whole = true;
    mass = sum;
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    sum += line.weights[i];
    if (sum > uniform * mass) return line.tokens[i];
  }
  if (!is_whole) return std::nullopt;
  return line.tokens[count - 1];
}

std::vector<NextToken> choose_tokens(const Context& context, const Stream& host, MatrixView<float> logits,
                                     const VocabPartition& vocab, const SamplingRule& rule,
                                     std::span<const DrawPlace> places, bool log_probs) {
  REPRISE_CHECK(std::ssize(places) == logits.rows && vocab.ids(context.groups.tp_rank()).size() == logits.cols,
                "{} places and {} ids for logits [{}, {}]", places.size(), vocab.ids(context.groups.tp_rank()).size(),
                logits.rows, logits.cols);
  const Arena::Scope scope(context.arena);
  const std::vector<double> sums = log_probs ? log_sums(context, host, logits) : std::vector<double>(places.size());
  const bool draws = rule.temperature > 0.0;
  if (draws && rule.temperature != 1.0) {
    scale<float>(context.stream, static_cast<float>(1.0 / rule.temperature), logits.flat());
  }
  const std::vector<Candidate> chosen =
      draws ? Draw(context, host, logits, vocab, rule, places).run()
            : take_largest(context, host, logits, vocab.ids(context.groups.tp_rank()).begin);
  std::vector<NextToken> tokens;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const auto value = static_cast<double>(value_of(chosen[i]));
    require(std::isfinite(value), ErrorKind::kNonFinite,
            "prompt {}: the model's logits are not finite, or too large for the temperature", places[i].prompt);
    const double logit = draws ? value * rule.temperature : value;
    tokens.push_back({narrow<std::int32_t>(static_cast<std::int64_t>(id_of(chosen[i]))),
                      log_probs ? static_cast<float>(logit - sums[i]) : 0.0f});
  }
  return tokens;
}

}  // namespace reprise
