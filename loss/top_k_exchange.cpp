#include "loss/top_k_exchange.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/transfer.hpp"
#include "loss/set_rule.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kTokenGrain = 16;

using Tokens = std::vector<std::int64_t>;

/// The shards' statistics of a token, in rank order, as one softmax over the vocabulary.
TokenSoftmax combine(const VocabPartition& vocab, MatrixView<const ShardStatistics> shards, std::int64_t token,
                     std::int32_t gold) {
  float max = -std::numeric_limits<float>::infinity();
  for (std::int64_t r = 0; r < shards.rows; ++r) max = std::max(max, shards(r, token).max);
  TokenSoftmax softmax{.reference = reference_exponent(max), .gold = gold};
  for (int r = 0; r < vocab.tp_size(); ++r) {
    const ShardStatistics& shard = shards(r, token);
    const Range ids = vocab.ids(r);
    if (ids.size() == 0) continue;
    softmax.sum_exp += std::ldexp(shard.sum_exp, reference_exponent(shard.max) - softmax.reference);
    if (ids.begin <= gold && gold < ids.end) softmax.gold_logit = shard.gold_logit;
  }
  return softmax;
}

std::vector<TokenSoftmax> gather_softmax(const Context& context, const LocalTopK& local, const VocabPartition& vocab,
                                         const CollectBatch& batch) {
  const std::int64_t tokens = batch.row.size, ranks = vocab.tp_size();
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(ShardStatistics));
  const auto gathered = context.arena.matrix<ShardStatistics>(ranks, tokens, "Top-K statistics");
  context.groups.tp->all_gather<std::uint8_t>(
      context.stream, {reinterpret_cast<const std::uint8_t*>(local.statistics.data), tokens * kBytes},
      {reinterpret_cast<std::uint8_t*>(gathered.data), ranks * tokens * kBytes});
  const auto host = on_host(context.stream, gathered.flat());
  const MatrixView<const ShardStatistics> all{host.view(), ranks, tokens};
  std::vector<TokenSoftmax> softmax;
  softmax.reserve(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t r = 0; r < ranks; ++r) {
      require(!std::isnan(all(r, t).max), ErrorKind::kNonFinite,
              "the logits of token {} (row {}) hold NaN, Inf or values beyond {} in the vocabulary shard of tp rank {}",
              t, batch.row[t], kMaxLogit, r);
    }
    softmax.push_back(combine(vocab, all, t, batch.gold[t]));
  }
  return softmax;
}

/// The chosen tokens, by sample.
std::vector<Tokens> choose_tokens(const CollectBatch& batch, const std::vector<float>& confidence,
                                  const TopKOptions& options) {
  std::vector<Tokens> chosen;
  for (std::int64_t s = 0; s < batch.sample_id.size; ++s) {
    const std::int64_t begin = batch.sample_begin[s], count = batch.sample_begin[s + 1] - begin;
    const auto size = static_cast<std::size_t>(count);
    Tokens tokens = select_positions(options.positions, options.budget, options.seed, batch.sample_id[s],
                                     {batch.position.data + begin, size},
                                     {confidence.data() + static_cast<std::size_t>(begin), size});
    for (std::int64_t& token : tokens) token += begin;
    chosen.push_back(std::move(tokens));
  }
  return chosen;
}

/// Candidates that this rank received for the tokens it owns, on the host, by rank of origin.
struct Received {
  HostView<Candidate> all;
  std::vector<MatrixView<const Candidate>> parts;  // [tp] of [own tokens, candidates of that rank's shard]
};

/// The candidates of these tokens, one behind the other, on the device.
VectorView<const Candidate> gather_candidates(const Context& context, MatrixView<const Candidate> from,
                                              const std::vector<Tokens>& tokens_of) {
  std::vector<std::int32_t> index;
  for (const Tokens& tokens : tokens_of) index.insert(index.end(), tokens.begin(), tokens.end());
  const auto rows = static_cast<std::int64_t>(index.size());
  const auto to = context.arena.matrix<Candidate>(rows, from.cols, "Top-K candidates to send");
  const auto device_index = context.arena.vector<std::int32_t>(rows, "Top-K tokens");
  copy_to_device<std::int32_t>(context.stream, index, device_index);
  // Rows are copied as they are; a candidate is as long as two float32.
  constexpr auto kFloats = static_cast<std::int64_t>(sizeof(Candidate) / sizeof(float));
  gather_rows<float>(context.stream, {reinterpret_cast<const float*>(from.data), from.rows, kFloats * from.cols},
                     device_index, {reinterpret_cast<float*>(to.data), rows, kFloats * from.cols});
  return to.flat();
}

/// `tokens_of[r]` are the tokens whose candidates rank r wants.
Received exchange_candidates(const Context& context, const LocalTopK& local, const VocabPartition& vocab,
                             const std::vector<Tokens>& tokens_of, std::int64_t k_max) {
  const int ranks = vocab.tp_size(), rank = context.groups.tp_rank();
  const auto own_tokens = static_cast<std::int64_t>(tokens_of[static_cast<std::size_t>(rank)].size());
  std::vector<std::int64_t> send_counts, receive_counts;
  for (int r = 0; r < ranks; ++r) {
    const auto wanted = static_cast<std::int64_t>(tokens_of[static_cast<std::size_t>(r)].size());
    send_counts.push_back(wanted * local.candidates.cols);
    receive_counts.push_back(own_tokens * std::min(k_max, vocab.ids(r).size()));
  }
  const auto send = gather_candidates(context, local.candidates, tokens_of);
  const auto receive = context.arena.vector<Candidate>(
      std::accumulate(receive_counts.begin(), receive_counts.end(), std::int64_t{0}), "Top-K candidates");
  context.groups.tp->all_to_all<Candidate>(context.stream, send, send_counts, receive, receive_counts);
  Received received{on_host(context.stream, receive), {}};
  std::int64_t begin = 0;
  for (const std::int64_t count : receive_counts) {
    received.parts.emplace_back(received.all.view().slice(begin, count), own_tokens,
                                own_tokens == 0 ? 0 : count / own_tokens);
    begin += count;
  }
  return received;
}

/// The first k of all shards' candidates of one token, sorted.
std::vector<Candidate> merge(const Received& received, std::int64_t own_token, std::int64_t k) {
  std::vector<Candidate> merged;
  for (const auto& part : received.parts) {
    merged.insert(merged.end(), part.row(own_token).begin(), part.row(own_token).end());
  }
  const auto size = std::min<std::ptrdiff_t>(k, static_cast<std::ptrdiff_t>(merged.size()));
  if (size < static_cast<std::ptrdiff_t>(merged.size())) {
    std::nth_element(merged.begin(), merged.begin() + size, merged.end());
    merged.resize(static_cast<std::size_t>(size));
  }
  std::sort(merged.begin(), merged.end());
  return merged;
}

void append_record(SampleRecords& records, const CollectBatch& batch, std::int64_t token, const TokenSet& set,
                   float confidence) {
  records.position.push_back(batch.position[token]);
  records.gold.push_back(static_cast<std::uint32_t>(batch.gold[token]));
  records.flags.push_back(set.gold_forced ? SampleRecords::kGoldForced : std::uint8_t{0});
  records.mass.push_back(set.mass);
  records.confidence.push_back(confidence);
  records.ids.insert(records.ids.end(), set.ids.begin(), set.ids.end());
  records.log_prob.insert(records.log_prob.end(), set.log_prob.begin(), set.log_prob.end());
  records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
}

}  // namespace

std::vector<SampleRecords> exchange_top_k(const Context& context, const LocalTopK& local, const VocabPartition& vocab,
                                          const CollectBatch& batch, const TopKOptions& options,
                                          const CpuStream& host) {
  const Arena::Scope scope(context.arena);
  const std::vector<TokenSoftmax> softmax = gather_softmax(context, local, vocab, batch);
  std::vector<float> confidence;
  for (const TokenSoftmax& token : softmax) {
    confidence.push_back(static_cast<float>(std::min(1.0, probability(token, token.gold_logit))));
  }

  const std::vector<Tokens> chosen = choose_tokens(batch, confidence, options);
  std::vector<Tokens> tokens_of(static_cast<std::size_t>(vocab.tp_size()));
  for (std::size_t s = 0; s < chosen.size(); ++s) {
    Tokens& tokens = tokens_of[static_cast<std::size_t>(batch.owner[static_cast<std::int64_t>(s)])];
    tokens.insert(tokens.end(), chosen[s].begin(), chosen[s].end());
  }
  const Received received = exchange_candidates(context, local, vocab, tokens_of, options.k_max);

  const Tokens& own = tokens_of[static_cast<std::size_t>(context.groups.tp_rank())];
  std::vector<TokenSet> sets(own.size());
  const CpuStream& threads = context.stream.is_cpu() ? context.stream.cpu() : host;
  threads.parallel_for(static_cast<std::int64_t>(own.size()), kTokenGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto token = static_cast<std::size_t>(own[static_cast<std::size_t>(i)]);
      sets[static_cast<std::size_t>(i)] = select_set(merge(received, i, options.k_max), softmax[token], options);
    }
  });

  std::vector<SampleRecords> samples;
  std::size_t next = 0;
  for (std::int64_t s = 0; s < batch.sample_id.size; ++s) {
    if (batch.owner[s] != context.groups.tp_rank()) continue;
    SampleRecords& records = samples.emplace_back();
    records.sample_id = batch.sample_id[s];
    records.sample_hash = batch.sample_hash[s];
    for (const std::int64_t token : chosen[static_cast<std::size_t>(s)]) {
      append_record(records, batch, token, sets[next++], confidence[static_cast<std::size_t>(token)]);
    }
  }
  return samples;
}

}  // namespace reprise
