#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <optional>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/trace.hpp"
#include "launcher/checkpoint.hpp"
#include "launcher/commands.hpp"
#include "launcher/evaluator.hpp"
#include "launcher/fault_injection.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/memory_report.hpp"
#include "launcher/prefetcher.hpp"
#include "launcher/progress.hpp"
#include "launcher/run_folder.hpp"
#include "launcher/step_shape.hpp"
#include "launcher/trainer.hpp"
#include "optimizer/schedule.hpp"

namespace reprise {

namespace {

/// Peak memory moves in the first steps; later it is looked at now and then, because it costs a collective.
constexpr std::int64_t kFirstMemorySteps = 2, kMemoryEvery = 50;

RunConfig with_total_steps(RunConfig config, const TrainingData& data) {
  config.train.steps = data.total_steps();
  return config;
}

/// A run from its folder to its end: what surrounds the arithmetic of Trainer.
template <class T>
class TrainRun {
 public:
  TrainRun(Session& session, const RunConfig& config, const TrainFlags& flags)
      : session_(session),
        flags_(flags),
        fault_(FaultInjection::from_environment(session.world().rank())),
        folder_(session.world(), config.run.folder, flags.fresh),
        decoder_(read_decoder_config(config.model.path, config.model.vocab_size)),
        data_(config, decoder_.vocab_size, session.groups()),
        config_(with_total_steps(config, data_)),
        schedule_(config_.schedule_options(config_.train.steps)) {
    require(config_.data.sequence_length <= decoder_.max_position_embeddings, ErrorKind::kUsage,
            "data.sequence_length = {}: the model knows {} positions (max_position_embeddings of {})",
            config_.data.sequence_length, decoder_.max_position_embeddings, config_.model.path);
    std::uint64_t ordinal = config_.data.train.size() + config_.data.general.size();
    for (const std::string& prefix : config_.data.eval) {
      evaluation_.emplace_back(std::make_unique<IndexedDataset>(prefix, decoder_.vocab_size, ordinal++));
      (void)count_data(*evaluation_.back(), config_.data.sequence_length);
    }
    // Last, because it may take minutes and everything above can be wrong.
    model_ = load_model<T>(session, config_.model.path, false, config_.model.vocab_size, trained_adapter(config_));
    trainer_.emplace(session, config_, *model_);
  }

  void run();

 private:
  [[nodiscard]] bool resume();
  void describe() const;
  void loop(Progress& progress);
  void after_step(const StepMetrics& metrics, Progress& progress);
  /// True when the mean loss on the first set is the best so far.
  [[nodiscard]] bool evaluate_all(Progress& progress);
  void save(Progress& progress);
  void measure_memory(std::int64_t steps_here);
  [[nodiscard]] MemoryEstimate foresee_memory() const;
  void report_memory();
  [[nodiscard]] bool is_due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }

  Session& session_;
  TrainFlags flags_;
  FaultInjection fault_;
  RunFolder folder_;
  DecoderConfig decoder_;
  TrainingData data_;
  RunConfig config_;
  ScheduleOptions schedule_;
  std::unique_ptr<LoadedModel<T>> model_;
  std::optional<Trainer<T>> trainer_;
  std::vector<std::unique_ptr<IndexedDataset>> evaluation_;
  std::optional<MetricsFile> metrics_;  // rank 0
  TrainerState state_;
  std::int64_t saved_step_ = -1;
  std::int64_t memory_bytes_ = 0;
  MemoryEstimate foreseen_;
};

template <class T>
bool TrainRun<T>::resume() {
  const auto found = find_checkpoint(session_.world(), folder_.checkpoints());
  if (!found) {
    require(list_checkpoints(folder_.checkpoints()).empty(), ErrorKind::kCheckpoint,
            "{}: no checkpoint there verifies (see `reprise checkpoint verify {}`); start over with --fresh",
            folder_.checkpoints().string(), folder_.path().string());
    return false;
  }
  if (session_.is_first()) {
    for (const std::string& problem : found->passed_over) fmt::print(stderr, "warning: passed over {}\n", problem);
  }
  require_same_run(folder_, read_trainer_state(found->folder), config_, data_.provenance());
  Optimizer<T>& optimizer = trainer_->optimizer();
  state_ = load_checkpoint(session_.stream(), session_.groups(), found->folder, model_->trained().specs(),
                           optimizer.held_pieces());
  optimizer.set_steps_taken(state_.steps_taken);
  optimizer.publish_parameters(session_.context());
  saved_step_ = state_.step;
  return true;
}

template <class T>
void TrainRun<T>::describe() const {
  const DataStatistics statistics = sum_of(data_.statistics());
  fmt::print(stderr, "{}: {} samples, {} targets; tensor {} x data {}{}, {} steps of {} samples\n",
             fmt::join(config_.data.train, ", "), format_count(statistics.samples), format_count(statistics.targets),
             session_.groups().tp_size(), session_.groups().dp_size(), session_.on_device(), config_.train.steps,
             config_.train.global_batch);
  for (std::size_t p = 0; p < config_.data.train.size() && config_.data.train.size() > 1; ++p) {
    fmt::print(stderr, "  {:.1f} % from {}\n", 100.0 * data_.share(p), config_.data.train[p]);
  }
  if (!config_.data.general.empty()) {
    fmt::print(stderr, "{}: {} samples under full cross-entropy, {:.1f} % of each batch\n",
               fmt::join(config_.data.general, ", "), format_count(sum_of(data_.general_statistics()).samples),
               100.0 * config_.general_ratio());
  }
  const auto tell = [](std::int64_t count, const char* what) {
    if (count > 0) fmt::print(stderr, "note: {} samples {}\n", format_count(count), what);
  };
  tell(statistics.truncated, "are longer than data.sequence_length and were truncated");
  tell(statistics.without_targets, "have no target and train nothing");
  tell(data_.missing_samples(), "are not in the store and train nothing (replay.missing = \"skip\")");
  for (const std::string& note : notes(config_)) fmt::print(stderr, "note: {}\n", note);
}

template <class T>
bool TrainRun<T>::evaluate_all(Progress& progress) {
  trainer_->settle();
  bool best = false;
  for (std::size_t i = 0; i < evaluation_.size(); ++i) {
    EvaluationOptions options;
    options.sequence_length = config_.data.sequence_length;
    options.micro_batch = config_.train.micro_batch;
    const EvalResult result = evaluate(session_, *model_->model, *evaluation_[i], options);
    const std::string& prefix = config_.data.eval[i];
    if (metrics_) metrics_->write_evaluation(state_.step, prefix, result.loss, result.top1, result.tokens);
    progress.print(fmt::format("step {}: {} loss {:.4f}, top-1 {:.2f} %, over {} tokens", state_.step, prefix,
                               result.loss, 100.0 * result.top1, format_count(result.tokens)));
    if (i > 0 || state_.step == 0) continue;  // the best is one that was trained
    best = std::isfinite(result.loss) && (state_.best_step < 0 || result.loss < state_.best_eval);
    if (best) {
      state_.best_eval = result.loss;
      state_.best_step = state_.step;
    }
  }
  return best;
}

template <class T>
void TrainRun<T>::save(Progress& progress) {
  if (saved_step_ == state_.step) return;
  const TraceRange range("checkpoint");
  trainer_->settle();
  state_.steps_taken = trainer_->optimizer().steps_taken();
  state_.next_sample = state_.step * config_.train.global_batch;
  state_.metrics_bytes = metrics_ ? metrics_->bytes() : 0;
  state_.run_toml = to_toml(config_);
  state_.model_fingerprint = data_.provenance().at("model");
  const auto folder =
      save_checkpoint(session_.stream(), session_.groups(), folder_.checkpoints(), state_, model_->trained().specs(),
                      trainer_->optimizer().owned_pieces(), config_.train.keep);
  saved_step_ = state_.step;
  progress.print(fmt::format("step {}: checkpoint {}", state_.step, folder.string()));
}

template <class T>
void TrainRun<T>::measure_memory(std::int64_t steps_here) {
  const bool last = state_.step == config_.train.steps;
  if (steps_here > kFirstMemorySteps && state_.step % kMemoryEvery != 0 && !last) return;
  std::int64_t bytes = session_.peak_memory_bytes();
  session_.world().all_reduce<std::int64_t>(session_.host(), {&bytes, 1}, ReduceOp::kMax);
  memory_bytes_ = bytes;
}

/// What `check` foresees, of this device and these threads.
template <class T>
MemoryEstimate TrainRun<T>::foresee_memory() const {
  const RunShape run(decoder_, config_, session_.world().size());
  const StepShape step = measure_step_shape(config_, decoder_.vocab_size, run.data, config_.train.steps);
  const StoreShape store = data_.has_store() ? measure_store_shape(data_.store(), config_) : StoreShape{};
  const int threads = session_.host().cpu().num_threads();
  return estimate_memory(run, step, store, {.gpu = session_.gpu() != nullptr, .threads = threads});
}

template <class T>
void TrainRun<T>::report_memory() {
  const auto size = [](const auto& view) { return view.size * static_cast<std::int64_t>(sizeof(*view.data)); };
  const MeasuredMemory own{.weights = size(model_->parameters.values()) + size(model_->adapters.values()),
                           .gradients = size(model_->trained().gradients()),
                           .optimizer = trainer_->optimizer().state_bytes(),
                           .arena = session_.arena().high_water_bytes(),
                           .gpu = session_.gpu() == nullptr ? 0 : session_.peak_device_bytes(),
                           .process = peak_memory_bytes()};
  const MeasuredMemory largest = largest_of_ranks(session_, own);
  if (!session_.is_first()) return;
  write_memory_json(folder_.path(), foreseen_, largest);
  fmt::print(stderr, "{}", describe_memory(foreseen_, largest));
}

template <class T>
void TrainRun<T>::after_step(const StepMetrics& metrics, Progress& progress) {
  if (metrics_) metrics_->write(metrics);
  if (!is_due(config_.train.log_every) && state_.step != config_.train.steps) return;
  std::string note = fmt::format("loss {:.4f}  lr {:.2e}", metrics.loss, metrics.lr);
  if (metrics.angles) {
    note +=
        fmt::format("  angle {:.0f}  clipped {:.0f} %", metrics.angles->mean, 100.0 * metrics.angles->clipped_share);
  }
  note += metrics.skipped ? "  SKIPPED" : fmt::format("  {:.0f} targets/s", metrics.tokens_per_second);
  progress.update(state_.step, note);
}

template <class T>
void TrainRun<T>::loop(Progress& progress) {
  Prefetcher<PreparedStep> loader(state_.step, config_.train.steps,
                                  [&](std::int64_t step) { return data_.prepare(step); });
  bool stopped = false;
  for (std::int64_t steps_here = 1; state_.step < config_.train.steps && !stopped; ++steps_here) {
    if (fault_.reached("train.step", state_.step + 1)) trainer_->poison_gradient();
    const auto start = std::chrono::steady_clock::now();
    const PreparedStep prepared = loader.next();
    const bool stop = stop_requested() || steps_here == flags_.stop_after;
    StepOutcome outcome = trainer_->step(prepared, learning_rate(schedule_, state_.step), stop);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    stopped = outcome.stop;

    ++state_.step;
    state_.skips += outcome.metrics.skipped ? 1 : 0;
    state_.skips_in_row = outcome.metrics.skipped ? state_.skips_in_row + 1 : 0;
    measure_memory(steps_here);
    outcome.metrics.step = state_.step;
    outcome.metrics.step_ms = 1e3 * seconds;
    outcome.metrics.tokens_per_second = static_cast<double>(outcome.metrics.tokens) / seconds;
    outcome.metrics.memory_bytes = memory_bytes_;
    after_step(outcome.metrics, progress);
    require(state_.skips_in_row < config_.optimizer.max_skips, ErrorKind::kNonFinite,
            "step {}: the last {} steps were skipped, their loss or gradients were not finite (or all weights zero); "
            "look at {}, lower optimizer.lr or check the data; an earlier checkpoint is kept",
            state_.step, state_.skips_in_row, folder_.metrics().string());

    const bool last = state_.step == config_.train.steps;
    const bool evaluates = is_due(config_.train.eval_every) || (config_.train.eval_every > 0 && last);
    const bool best = evaluates && evaluate_all(progress);
    if (best || last || stopped || is_due(config_.train.checkpoint_every)) save(progress);
  }
  if (stopped && state_.step < config_.train.steps) {
    progress.finish();
    fail(ErrorKind::kPreempted, "stopped as asked after step {} of {}; the same command goes on from there",
         state_.step, config_.train.steps);
  }
}

template <class T>
void TrainRun<T>::run() {
  const bool resumed = resume();
  if (session_.is_first()) {
    write_provenance(folder_, config_, session_, data_.provenance());
    metrics_.emplace(folder_.metrics(), resumed ? state_.metrics_bytes : 0);
    describe();
    if (resumed) fmt::print(stderr, "going on from step {} of {}\n", state_.step, config_.train.steps);
  }
  foreseen_ = foresee_memory();
  session_.arena().reserve(foreseen_.arena());
  session_.arena().reset();
  Progress progress("train", config_.train.steps, !session_.is_first());
  if (!resumed && config_.train.eval_every > 0) (void)evaluate_all(progress);
  loop(progress);
  progress.finish();
  report_memory();
  if (session_.is_first()) {
    fmt::print(stderr, "{}: {} steps done{}\n", folder_.path().string(), state_.step,
               state_.skips > 0 ? fmt::format(", {} of them skipped", state_.skips) : "");
  }
}

}  // namespace

void train_command(Session& session, const RunConfig& config, const TrainFlags& flags) {
  install_stop_signals();
  const RunConfig resolved = with_adapter_settings(config);
  if (config.model.dtype == "bfloat16") {
    TrainRun<BFloat16>(session, resolved, flags).run();
  } else {
    TrainRun<float>(session, resolved, flags).run();
  }
}

}  // namespace reprise
