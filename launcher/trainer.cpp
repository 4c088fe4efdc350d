#include "launcher/trainer.hpp"

#include <limits>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "core/transfer.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kProbeTokens = 64;

}  // namespace

template <class T>
Trainer<T>::Trainer(Session& session, const RunConfig& config, LoadedModel<T>& model)
    : session_(session),
      model_(model),
      recompute_(config.train.recompute == "layer" ? Recompute::kLayer : Recompute::kNone),
      loss_(make_head_loss<T>(config.normalization(), model.vocab)),
      head_time_(make_stopwatch(session.stream())),
      optimizer_(make_optimizer(session.context(), config.optimizer_options(), model.parameters)) {
  optimizer_->set_master_from_parameters();
}

template <class T>
void Trainer<T>::poison_gradient() {
  const ParameterSet<T>& parameters = model_.parameters;
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const ParameterSpec& spec = parameters.spec(p);
    if (!spec.counted || spec.frozen || spec.size() == 0) continue;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    copy_to_device<float>(session_.stream(), {&nan, 1}, model_.parameters.gradient(p).flat().slice(0, 1));
    return;
  }
}

template <class T>
bool Trainer<T>::head(const Context& context, MatrixView<const T> hidden, const LossBatch& batch,
                      MatrixView<T> d_hidden, StepSums& sums) {
  const TraceRange range("loss");
  const DecoderModel<T>& model = *model_.model;
  try {
    head_time_->start();
    const auto output = loss_->forward(context, hidden, model.head_weight(), batch);
    sums.weight += output.weight_sum;
    sums.weighted_loss += output.weighted_sum;
    sums.tokens += static_cast<double>(output.tokens);
    loss_->backward(context, model.head_weight(), d_hidden, model.head_gradient());
    head_time_->stop();
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNonFinite) throw;
    // Every rank of the tensor-parallel group is here; the others learn it from the gradient.
    sums.weighted_loss = std::numeric_limits<double>::quiet_NaN();
    poison_gradient();
    return false;
  }
}

template <class T>
void Trainer<T>::accumulate(const Context& context, const PreparedMicroBatch& micro,
                            VectorView<const std::int32_t> negatives, StepSums& sums) {
  if (micro.targets.size() == 0) return;
  const DecoderModel<T>& model = *model_.model;
  context.arena.reset();

  typename DecoderModel<T>::ActivationsPtr activations;
  const MatrixView<T> hidden = [&] {
    const TraceRange range("forward");
    return model.forward(context, micro.batch.token_batch(), recompute_, activations);
  }();
  const MatrixView<T> d_hidden = context.arena.matrix<T>(hidden.rows, hidden.cols, "gradient of the hidden states");
  if (!head(context, hidden, micro.targets.loss_batch(negatives), d_hidden, sums)) return;

  if (micro.probe.size() > 0) {
    const TraceRange range("probe");
    const Arena::Scope scope(context.arena);
    const auto [mass, tokens] = out_of_set_mass<T>(context, hidden, model.head_weight(), micro.probe.loss_batch(),
                                                   model_.vocab, {}, kProbeTokens);
    sums.probe_mass += mass;
    sums.probe_tokens += tokens;
  }
  const TraceRange range("backward");
  model.backward(context, *activations, d_hidden);
}

template <class T>
void Trainer<T>::reduce(const Context& context, bool last) {
  const TraceRange range("reduce");
  optimizer_->reduce_gradients(context, last);
}

template <class T>
StepOutcome Trainer<T>::step(const PreparedStep& prepared, double lr, bool stop) {
  const Context context = session_.context();
  StepSums sums;
  const std::size_t count = prepared.micro_batches.size();
  for (std::size_t i = 0; i < count; ++i) {
    accumulate(context, prepared.micro_batches[i], prepared.negatives, sums);
    reduce(context, i + 1 == count);
  }
  if (count == 0) reduce(context, true);

  if (session_.groups().tp_rank() != 0) sums = {};
  sums.stop = stop ? 1.0 : 0.0;
  const StepResult result = [&] {
    const TraceRange range("step");
    return optimizer_->step(context, lr, sums);
  }();

  StepOutcome outcome;
  outcome.stop = result.sums.stop > 0.0;
  StepMetrics& metrics = outcome.metrics;
  metrics.loss = result.sums.weighted_loss / result.sums.weight;
  metrics.lr = lr;
  metrics.grad_norm = result.grad_norm;
  metrics.skipped = result.skipped;
  metrics.tokens = static_cast<std::int64_t>(result.sums.tokens);
  if (result.angles.groups > 0) metrics.angles = result.angles;
  if (result.sums.probe_tokens > 0.0) metrics.out_of_set_mass = result.sums.probe_mass / result.sums.probe_tokens;
  metrics.head_ms = 1e3 * head_time_->take_seconds();
  return outcome;
}

template class Trainer<float>;
template class Trainer<BFloat16>;

}  // namespace reprise
