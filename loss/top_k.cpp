#include "loss/top_k.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/gemm.hpp"
#include "loss/local_top_k.hpp"
#include "loss/loss_batch_check.hpp"
#include "loss/selected_rows.hpp"
#include "loss/set_rule.hpp"
#include "loss/top_k_exchange.hpp"

namespace reprise {

namespace {

/// Tokens whose logits are held at a time: with fewer the product would be bound by reading the weights. A GPU
/// multiplies that much faster than it reads.
std::int64_t chunk_tokens(const Stream& stream) {
  return stream.is_cpu() ? 256 : 1024;
}

/// What a user's data can get wrong; the same on every rank, before any collective.
void check_collect_batch(const CollectBatch& batch, std::int64_t total_rows, const VocabPartition& vocab) {
  const std::int64_t tokens = batch.row.size, samples = batch.sample_id.size;
  REPRISE_CHECK(batch.gold.size == tokens && batch.position.size == tokens && batch.sample_begin.size == samples + 1 &&
                    batch.sample_hash.size == samples && batch.owner.size == samples,
                "the arrays of {} tokens and {} samples do not fit together", tokens, samples);
  REPRISE_CHECK(batch.sample_begin[0] == 0 && batch.sample_begin[samples] == tokens &&
                    std::is_sorted(batch.sample_begin.begin(), batch.sample_begin.end()),
                "samples do not cover the {} tokens", tokens);
  REPRISE_CHECK(std::all_of(batch.owner.begin(), batch.owner.end(),
                            [&](std::int32_t owner) { return owner >= 0 && owner < vocab.tp_size(); }),
                "an owner is not one of {} ranks", vocab.tp_size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    REPRISE_CHECK(batch.row[t] >= (t == 0 ? 0 : batch.row[t - 1] + 1) && batch.row[t] < total_rows,
                  "row {} of token {} does not rise within {} rows", batch.row[t], t, total_rows);
    require(batch.gold[t] >= 0 && batch.gold[t] < vocab.vocab_size, ErrorKind::kData,
            "token {} (row {}): the next token is {}, the vocabulary has {}", t, batch.row[t], batch.gold[t],
            vocab.vocab_size);
  }
}

/// Chunk by chunk: this rank's logits, and the candidates they give.
template <class T>
LocalTopK select_locally(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight, Range ids,
                         VectorView<const std::int32_t> gold, std::int64_t k_max, const LossOptions& loss_options) {
  const std::int64_t tokens = hidden.rows, k = std::min(k_max, ids.size()), most = chunk_tokens(context.stream);
  const auto statistics = context.arena.vector<ShardStatistics>(tokens, "Top-K statistics of the shard");
  const auto candidates = context.arena.matrix<Candidate>(tokens, k, "Top-K candidates of the shard");
  const Arena::Scope scope(context.arena);
  const VectorView<const std::int32_t> device_gold = context.arena.copy(gold, "gold tokens");
  const auto logits = context.arena.matrix<float>(std::min(tokens, most), ids.size(), "Top-K logits");
  for (std::int64_t begin = 0; begin < tokens; begin += most) {
    const std::int64_t count = std::min(most, tokens - begin);
    const MatrixView<float> chunk = logits.row_range(0, count);
    gemm<T, float>(context.stream, Transpose::kNo, Transpose::kYes, 1.0f, hidden.row_range(begin, count),
                   weight.row_range(0, ids.size()), 0.0f, chunk);
    local_top_k(context.stream, context.arena, chunk, {loss_options.logit_scale, loss_options.softcap}, ids.begin,
                k_max, device_gold.slice(begin, count), statistics.slice(begin, count),
                candidates.row_range(begin, count));
  }
  return {statistics, candidates};
}

}  // namespace

template <class T>
std::vector<SampleRecords> collect_top_k(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                                         const VocabPartition& vocab, const CollectBatch& batch,
                                         const TopKOptions& options, const LossOptions& loss_options,
                                         const CpuStream& host) {
  check_top_k_options(options);
  require(context.stream.is_cpu() || options.k_max <= kMostCudaCandidates, ErrorKind::kUsage,
          "replay.k_max = {}: must be 1 to {} on a GPU", options.k_max, kMostCudaCandidates);
  check_loss_options(vocab, loss_options);
  check_head_shapes(context, vocab, hidden, weight);
  const std::int64_t total_rows = count_total_rows(context, hidden.rows, {});
  check_collect_batch(batch, total_rows, vocab);
  const Arena::Scope scope(context.arena);
  const SelectedRows<T> selected(context, hidden, batch.row, total_rows);
  const Range ids = vocab.ids(context.groups.tp_rank());
  const LocalTopK local =
      select_locally<T>(context, selected.hidden(), weight, ids, batch.gold, options.k_max, loss_options);
  selected.check_finite(context);
  return exchange_top_k(context, local, vocab, batch, options, host);
}

template std::vector<SampleRecords> collect_top_k(const Context&, MatrixView<const float>, MatrixView<const float>,
                                                  const VocabPartition&, const CollectBatch&, const TopKOptions&,
                                                  const LossOptions&, const CpuStream&);
template std::vector<SampleRecords> collect_top_k(const Context&, MatrixView<const BFloat16>,
                                                  MatrixView<const BFloat16>, const VocabPartition&,
                                                  const CollectBatch&, const TopKOptions&, const LossOptions&,
                                                  const CpuStream&);

void CollectStatistics::add(const SampleRecords& records, std::int64_t k_max) {
  ++samples;
  tokens += records.size();
  ids += static_cast<std::int64_t>(records.ids.size());
  for (std::size_t t = 0; t < records.position.size(); ++t) {
    const auto size = static_cast<std::size_t>(records.id_begin[t + 1] - records.id_begin[t]);
    if (set_size.size() <= size) set_size.resize(size + 1);
    ++set_size[size];
    gold_outside += (records.flags[t] & SampleRecords::kGoldForced) != 0 ? 1 : 0;
    at_k_max += static_cast<std::int64_t>(size) >= k_max ? 1 : 0;
    mass += static_cast<double>(records.mass[t]);
    ++bucket[confidence_bucket(records.confidence[t])];
  }
}

}  // namespace reprise
