#include "launcher/evaluator.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/prefetcher.hpp"
#include "launcher/recorded_sets.hpp"
#include "loss/target_statistics.hpp"

namespace reprise {

namespace {

constexpr std::uint64_t kDocumentMask = (std::uint64_t{1} << 48) - 1;

struct PreparedUnit {
  std::vector<MicroBatch> batches;
  std::vector<RecordedSets> sets;  ///< one a micro-batch; none without a store
};

struct UnitResult {
  std::vector<SampleScore> samples;
  std::vector<float> log_probs;  ///< of the targets, in data order
  std::vector<float> outside;    ///< of those that have a set
};

/// How many values lie in each of the steps of 2.3 % from 1e-8 to 1: quantiles of any number of values, whose counts
/// add up over ranks.
class LogHistogram {
 public:
  void add(float value) { ++counts_[step_of(static_cast<double>(value))]; }
  void sum_over(Communicator& group, const Stream& stream) { group.all_reduce<std::int64_t>(stream, counts_); }
  [[nodiscard]] double quantile(double share) const {
    const std::int64_t total = std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
    const auto wanted = static_cast<std::int64_t>(std::ceil(share * static_cast<double>(total)));
    std::int64_t below = 0;
    std::size_t step = 0;
    while (step + 1 < counts_.size() && (below += counts_[step]) < wanted) ++step;
    return step == 0 ? 0.0 : std::pow(10.0, kLowest + (static_cast<double>(step) - 0.5) / kPerDecade);
  }

 private:
  static constexpr double kLowest = -8.0, kPerDecade = 100.0;
  static constexpr std::size_t kSteps = 801;  // the first is of all below 1e-8

  static std::size_t step_of(double value) {
    const double position = (std::log10(value) - kLowest) * kPerDecade;
    return position >= 0.0 ? std::min(kSteps - 1, static_cast<std::size_t>(position) + 1) : 0;
  }

  std::vector<std::int64_t> counts_ = std::vector<std::int64_t>(kSteps, 0);
};

void add_samples(const MicroBatch& batch, const TargetStatistics& targets, const RecordedSets* sets,
                 UnitResult& result) {
  for (std::size_t s = 0; s < batch.sample_id.size(); ++s) {
    SampleScore score;
    score.document = static_cast<std::int64_t>(batch.sample_id[s] & kDocumentMask);
    for (auto t = static_cast<std::size_t>(batch.sample_begin[s]);
         t < static_cast<std::size_t>(batch.sample_begin[s + 1]); ++t) {
      ++score.tokens;
      score.log_prob += static_cast<double>(targets.log_prob[t]);
      score.top += targets.is_top[t];
      if (sets == nullptr || !sets->has_set(t)) continue;
      ++score.recorded;
      score.outside += static_cast<double>(targets.outside[t]);
      score.gold_outside += sets->gold_forced[t];
      result.outside.push_back(targets.outside[t]);
    }
    result.samples.push_back(score);
  }
  result.log_probs.insert(result.log_probs.end(), targets.log_prob.begin(), targets.log_prob.end());
}

template <class T>
UnitResult measure_unit(Session& session, const DecoderModel<T>& model, const PreparedUnit& unit) {
  const Context context = session.context();
  UnitResult result;
  for (std::size_t b = 0; b < unit.batches.size(); ++b) {
    const MicroBatch& batch = unit.batches[b];
    const Arena::Scope scope(context.arena);
    typename DecoderModel<T>::ActivationsPtr activations;
    const MatrixView<T> hidden = model.forward(context, batch.token_batch(), Recompute::kNoBackward, activations);
    MeasuredTargets targets{batch.row, batch.gold, batch.num_tokens()};
    const RecordedSets* sets = unit.sets.empty() ? nullptr : &unit.sets[b];
    if (sets != nullptr) {
      targets.set_begin = sets->begin;
      targets.set_end = sets->end;
      targets.ids = sets->ids;
    }
    add_samples(batch, measure_targets<T>(context, session.host(), hidden, model.head_weight(), model.vocab(), targets),
                sets, result);
  }
  return result;
}

/// The samples of a round of units, in data order, the same on every rank. A unit travels as kSamplesPerUnit samples of
/// seven numbers, the unused ones without tokens.
std::vector<std::vector<SampleScore>> gather_samples(Communicator& dp, const Stream& stream,
                                                     const std::vector<SampleScore>& own) {
  constexpr std::size_t kNumbers = 7;
  std::vector<double> words(kNumbers * kSamplesPerUnit, 0.0);
  auto word = words.begin();
  for (const SampleScore& s : own) {
    for (const double number :
         {static_cast<double>(s.document), static_cast<double>(s.tokens), s.log_prob, static_cast<double>(s.top),
          static_cast<double>(s.recorded), s.outside, static_cast<double>(s.gold_outside)}) {
      *word++ = number;
    }
  }
  std::vector<double> all(words.size() * static_cast<std::size_t>(dp.size()));
  dp.all_gather<double>(stream, words, all);
  std::vector<std::vector<SampleScore>> units(static_cast<std::size_t>(dp.size()));
  const auto whole = [](double number) { return static_cast<std::int64_t>(number); };
  for (std::size_t at = 0; at < all.size(); at += kNumbers) {
    const double* n = all.data() + at;
    if (n[1] == 0.0) continue;
    units[at / words.size()].push_back({whole(n[0]), whole(n[1]), n[2], whole(n[3]), whole(n[4]), n[5], whole(n[6])});
  }
  return units;
}

/// The log-probabilities of all units of a round, in data order.
std::vector<float> gather_log_probs(Communicator& dp, const Stream& stream, const std::vector<float>& own,
                                    const std::vector<std::vector<SampleScore>>& units) {
  std::vector<std::int64_t> counts;
  for (const auto& samples : units) {
    counts.push_back(std::accumulate(samples.begin(), samples.end(), std::int64_t{0},
                                     [](std::int64_t sum, const SampleScore& s) { return sum + s.tokens; }));
  }
  std::vector<float> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
  dp.all_gather<float>(stream, own, all, counts);
  return all;
}

void add(SampleScore& total, const SampleScore& sample) {
  total.tokens += sample.tokens;
  total.log_prob += sample.log_prob;
  total.top += sample.top;
  total.recorded += sample.recorded;
  total.outside += sample.outside;
  total.gold_outside += sample.gold_outside;
}

OutsideMass outside_mass(const SampleScore& total, const LogHistogram& histogram) {
  OutsideMass mass;
  const auto tokens = static_cast<double>(total.recorded);
  mass.tokens = total.recorded;
  mass.mean = total.outside / tokens;
  mass.gold_outside_rate = static_cast<double>(total.gold_outside) / tokens;
  for (std::size_t q = 0; q < mass.quantiles.size(); ++q) {
    mass.quantiles[q] = histogram.quantile(OutsideMass::kQuantiles[q]);
  }
  return mass;
}

PreparedUnit prepare_unit(const Dataset& dataset, std::int64_t unit, const EvaluationOptions& options) {
  PreparedUnit prepared;
  if (unit >= num_units(dataset)) return prepared;
  prepared.batches = load_unit(dataset, unit, options.micro_batch, options.sequence_length);
  if (options.store == nullptr) return prepared;
  for (const MicroBatch& batch : prepared.batches) prepared.sets.push_back(find_recorded_sets(batch, *options.store));
  return prepared;
}

}  // namespace

template <class T>
EvalResult evaluate(Session& session, const DecoderModel<T>& model, const Dataset& dataset,
                    const EvaluationOptions& options) {
  const TraceRange range("eval");
  Communicator& dp = *session.groups().dp;
  const std::int64_t dp_size = dp.size(), rounds = (num_units(dataset) + dp_size - 1) / dp_size;
  Prefetcher<PreparedUnit> loader(
      0, rounds, [&](std::int64_t round) { return prepare_unit(dataset, round * dp_size + dp.rank(), options); });

  EvalResult result;
  SampleScore total;
  LogHistogram histogram;
  for (std::int64_t r = 0; r < rounds; ++r) {
    const UnitResult own = measure_unit(session, model, loader.next());
    for (const float mass : own.outside) histogram.add(mass);
    const auto units = gather_samples(dp, session.host(), own.samples);
    for (const auto& samples : units) {
      result.samples += std::ssize(samples);
      for (const SampleScore& sample : samples) {
        add(total, sample);
        if (options.on_sample) options.on_sample(sample);
      }
    }
    if (options.on_log_probs) options.on_log_probs(gather_log_probs(dp, session.host(), own.log_probs, units));
    if (options.progress != nullptr) {
      options.progress->update(std::min(dataset.size(), (r + 1) * dp_size * kSamplesPerUnit));
    }
  }
  require(total.tokens > 0, ErrorKind::kData, "{}: no token to evaluate on (mask and sequence_length = {} leave none)",
          dataset.name(), options.sequence_length);
  result.loss = total.loss();
  result.top1 = total.top_share();
  result.tokens = total.tokens;
  if (total.recorded == 0) return result;
  histogram.sum_over(dp, session.host());
  result.outside = outside_mass(total, histogram);
  return result;
}

template EvalResult evaluate(Session&, const DecoderModel<float>&, const Dataset&, const EvaluationOptions&);
template EvalResult evaluate(Session&, const DecoderModel<BFloat16>&, const Dataset&, const EvaluationOptions&);

}  // namespace reprise
