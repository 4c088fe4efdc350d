#include "launcher/trainer.hpp"

#include <functional>
#include <limits>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "core/transfer.hpp"
#include "launcher/run_shape.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kProbeTokens = 64;

}  // namespace

template <class T>
Trainer<T>::Trainer(Session& session, const RunConfig& config, LoadedModel<T>& model)
    : session_(session),
      model_(model),
      recompute_(recompute_of(config)),
      loss_(make_head_loss<T>(config.normalization(), model.vocab)),
      head_time_(make_stopwatch(session.stream())),
      optimizer_(make_optimizer(session.context(), config.optimizer_options(), model.trained())),
      traffic_(session, model.trained(), *optimizer_, config.parallel.overlap) {
  if (!config.data.general.empty()) general_loss_ = make_head_loss<T>(Normalization::kFull, model.vocab);
  optimizer_->set_master_from_parameters();
}

template <class T>
void Trainer<T>::poison_gradient() {
  const ParameterSet<T>& parameters = model_.trained();
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const ParameterSpec& spec = parameters.spec(p);
    if (!spec.counted || spec.frozen || spec.size() == 0) continue;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    copy_to_device<float>(session_.stream(), {&nan, 1}, model_.trained().gradient(p).flat().slice(0, 1));
    return;
  }
}

template <class T>
bool Trainer<T>::head(const Context& context, MatrixView<const T> hidden, HeadLoss<T>& loss, const LossBatch& batch,
                      MatrixView<T> d_hidden, Place place, StepSums& sums) {
  const TraceRange range("loss");
  const DecoderModel<T>& model = *model_.model;
  try {
    head_time_->start();
    const auto output = loss.launch_forward(context, hidden, model.head_weight(), batch);
    sums.weight += output.weight_sum;
    sums.tokens += static_cast<double>(output.tokens);
    copy_on_device<double>(context.stream, {&output.summary.data->weighted_sum, 1},
                           losses_.view().slice(static_cast<std::int64_t>(place.index), 1));
    loss.backward(context, model.head_weight(), d_hidden, model.head_gradient());
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
void Trainer<T>::probe(const Context& context, MatrixView<const T> hidden, const LossBatch& batch, StepSums& sums) {
  if (batch.row.empty()) return;
  const TraceRange range("probe");
  const Arena::Scope scope(context.arena);
  try {
    const auto [mass, tokens] =
        out_of_set_mass<T>(context, hidden, model_.model->head_weight(), batch, model_.vocab, {}, kProbeTokens);
    sums.probe_mass += mass;
    sums.probe_tokens += tokens;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNonFinite) throw;  // else the loss is not finite either, and the step is skipped
  }
}

template <class T>
void Trainer<T>::accumulate(const Context& context, const PreparedMicroBatch& micro,
                            VectorView<const std::int32_t> negatives, Place place, StepSums& sums) {
  if (micro.targets.size() == 0) return;
  const DecoderModel<T>& model = *model_.model;
  context.arena.reset();

  typename DecoderModel<T>::ActivationsPtr activations;
  const MatrixView<T> hidden = [&] {
    const TraceRange range("forward");
    return model.forward(context, micro.batch.token_batch(), recompute_, activations,
                         [&](std::int64_t first, std::int64_t last) { traffic_.wait_for_parameters(first, last); });
  }();
  traffic_.wait_for_all_parameters();  // the head's are the last
  const MatrixView<T> d_hidden = context.arena.matrix<T>(hidden.rows, hidden.cols, "gradient of the hidden states");
  LossBatch batch = micro.targets.loss_batch(micro.general ? VectorView<const std::int32_t>{} : negatives);
  batch.needs_weight_gradient = model.head_gradient().data != nullptr;
  if (!head(context, hidden, micro.general ? *general_loss_ : *loss_, batch, d_hidden, place, sums)) return;
  probe(context, hidden, micro.probe.loss_batch(), sums);

  const TraceRange range("backward");
  std::function<void(std::int64_t, std::int64_t)> on_ready;
  if (place.last) on_ready = [&](std::int64_t first, std::int64_t last) { traffic_.gradients_ready(first, last); };
  model.backward(context, *activations, d_hidden, on_ready);
}

template <class T>
StepOutcome Trainer<T>::step(const PreparedStep& prepared, double lr, bool stop) {
  const Context context = session_.context();
  StepSums sums;
  const std::size_t count = prepared.micro_batches.size();
  if (losses_.size() < std::ssize(prepared.micro_batches)) {
    losses_ = Buffer<double>(context.stream, std::ssize(prepared.micro_batches), "losses of micro-batches");
  }
  zero(context.stream, losses_.view());
  for (std::size_t i = 0; i < count; ++i) {
    accumulate(context, prepared.micro_batches[i], prepared.negatives, {i, i + 1 == count}, sums);
    if (i + 1 < count) optimizer_->reduce_gradients(context, false);
  }
  traffic_.finish_gradients();

  const bool is_first_of_tensor = session_.groups().tp_rank() == 0;
  if (!is_first_of_tensor) sums = {};
  sums.stop = stop ? 1.0 : 0.0;
  const StepResult result = [&] {
    const TraceRange range("step");
    const VectorView<const double> losses = losses_.view();
    return optimizer_->update(context, lr, sums, is_first_of_tensor ? losses : losses.slice(0, 0));
  }();
  if (!result.skipped) traffic_.start_parameters();

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

template <class T>
void Trainer<T>::settle() {
  traffic_.wait_for_all_parameters();
  session_.arena().reset();
}

template class Trainer<float>;
template class Trainer<BFloat16>;

}  // namespace reprise
