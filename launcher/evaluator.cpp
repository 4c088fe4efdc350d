#include "launcher/evaluator.hpp"

#include <array>
#include <numeric>

#include "core/trace.hpp"
#include "core/transfer.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/prefetcher.hpp"
#include "loss/loss.hpp"

namespace reprise {

namespace {

/// Log-probabilities of the targets of a unit, in data order.
template <class T>
std::vector<float> unit_log_probs(const Context& context, const DecoderModel<T>& model, HeadLoss<T>& loss,
                                  const std::vector<MicroBatch>& batches) {
  std::vector<float> log_probs;
  for (const MicroBatch& batch : batches) {
    const Arena::Scope scope(context.arena);
    typename DecoderModel<T>::ActivationsPtr activations;
    const MatrixView<T> hidden = model.forward(context, batch.token_batch(), Recompute::kNone, activations);
    const std::vector<float> ones(batch.row.size(), 1.0f);
    const LossBatch targets{batch.row, batch.gold, ones, {}, {}};
    const auto output = loss.forward(context, hidden, model.head_weight(), targets);
    const auto losses = on_host(context.stream, output.token_loss);
    for (const float nats : losses.view()) log_probs.push_back(-nats);
  }
  return log_probs;
}

/// What a round of units has given, one entry per dp rank: the same on every rank.
struct Round {
  std::vector<double> sums, tokens, samples;
};

Round gather_round(Communicator& dp, const Stream& stream, double sum, double tokens, double samples) {
  const std::array<double, 3> own{sum, tokens, samples};
  std::vector<double> all(own.size() * static_cast<std::size_t>(dp.size()));
  dp.all_gather<double>(stream, {own.data(), static_cast<std::int64_t>(own.size())}, all);
  Round round;
  for (std::size_t i = 0; i < all.size(); i += own.size()) {
    round.sums.push_back(all[i]);
    round.tokens.push_back(all[i + 1]);
    round.samples.push_back(all[i + 2]);
  }
  return round;
}

/// The log-probabilities of all units of a round, in unit order.
std::vector<float> gather_log_probs(Communicator& dp, const Stream& stream, const std::vector<float>& own,
                                    const Round& round) {
  const std::vector<std::int64_t> counts(round.tokens.begin(), round.tokens.end());
  std::vector<float> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
  dp.all_gather<float>(stream, own, all, counts);
  return all;
}

}  // namespace

template <class T>
EvalResult evaluate(Session& session, const DecoderModel<T>& model, const IndexedDataset& dataset,
                    const EvaluationOptions& options) {
  const TraceRange range("eval");
  const Context context = session.context();
  Communicator& dp = *session.groups().dp;
  const auto loss = make_head_loss<T>(Normalization::kFull, model.vocab());

  const std::int64_t units = num_units(dataset), dp_size = dp.size();
  const std::int64_t rounds = (units + dp_size - 1) / dp_size;
  Prefetcher<std::vector<MicroBatch>> loader(0, rounds, [&](std::int64_t round) {
    const std::int64_t unit = round * dp_size + dp.rank();
    if (unit >= units) return std::vector<MicroBatch>{};
    return load_unit(dataset, unit, options.micro_batch, options.sequence_length);
  });

  EvalResult result;
  double sum = 0.0;
  for (std::int64_t r = 0; r < rounds; ++r) {
    const std::vector<MicroBatch> batches = loader.next();
    const std::vector<float> own = unit_log_probs(context, model, *loss, batches);
    double samples = 0.0;
    for (const MicroBatch& batch : batches) samples += static_cast<double>(batch.num_samples());
    const Round round = gather_round(dp, session.host(), std::accumulate(own.begin(), own.end(), 0.0),
                                     static_cast<double>(own.size()), samples);
    sum = std::accumulate(round.sums.begin(), round.sums.end(), sum);
    for (const double tokens : round.tokens) result.tokens += static_cast<std::int64_t>(tokens);
    for (const double count : round.samples) result.samples += static_cast<std::int64_t>(count);
    if (options.on_log_probs) options.on_log_probs(gather_log_probs(dp, session.host(), own, round));
    if (options.progress != nullptr) {
      options.progress->update(std::min(dataset.size(), (r + 1) * dp_size * kSamplesPerUnit));
    }
  }
  require(result.tokens > 0, ErrorKind::kData, "{}: no token to evaluate on (mask and sequence_length = {} leave none)",
          dataset.prefix().string(), options.sequence_length);
  result.loss = -sum / static_cast<double>(result.tokens);
  return result;
}

template EvalResult evaluate(Session&, const DecoderModel<float>&, const IndexedDataset&, const EvaluationOptions&);
template EvalResult evaluate(Session&, const DecoderModel<BFloat16>&, const IndexedDataset&, const EvaluationOptions&);

}  // namespace reprise
