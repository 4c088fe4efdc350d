#include "launcher/trainer.hpp"

#include <chrono>
#include <limits>

#include "core/error.hpp"

namespace reprise {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kProbeTokens = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

template <class T>
Trainer<T>::Trainer(Session& session, const RunConfig& config, LoadedModel<T>& model)
    : session_(session),
      model_(model),
      recompute_(config.train.recompute == "layer" ? Recompute::kLayer : Recompute::kNone),
      loss_(make_head_loss<T>(config.normalization(), model.vocab)),
      optimizer_(make_optimizer(session.context(), config.optimizer_options(), model.parameters)) {
  optimizer_->set_master_from_parameters();
}

template <class T>
void Trainer<T>::poison_gradient() {
  const ParameterSet<T>& parameters = model_.parameters;
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const ParameterSpec& spec = parameters.spec(p);
    if (!spec.counted || spec.frozen || spec.size() == 0) continue;
    model_.parameters.gradient(p).data[0] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
}

template <class T>
void Trainer<T>::accumulate(const Context& context, const PreparedMicroBatch& micro,
                            VectorView<const std::int32_t> negatives, Progressed& progressed) {
  if (micro.targets.size() == 0) return;
  const DecoderModel<T>& model = *model_.model;
  const LossBatch batch = micro.targets.loss_batch(negatives);
  context.arena.reset();

  typename DecoderModel<T>::ActivationsPtr activations;
  const MatrixView<T> hidden = model.forward(context, micro.batch.token_batch(), recompute_, activations);
  const MatrixView<T> d_hidden = context.arena.matrix<T>(hidden.rows, hidden.cols, "gradient of the hidden states");

  const Clock::time_point start = Clock::now();
  try {
    const auto output = loss_->forward(context, hidden, model.head_weight(), batch);
    progressed.sums.weight += output.weight_sum;
    progressed.sums.weighted_loss += output.weighted_sum;
    progressed.sums.tokens += static_cast<double>(output.tokens);
    loss_->backward(context, model.head_weight(), d_hidden, model.head_gradient());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNonFinite) throw;
    // Every rank of the tensor-parallel group is here; the others learn it from the gradient.
    progressed.sums.weighted_loss = std::numeric_limits<double>::quiet_NaN();
    poison_gradient();
    return;
  }
  progressed.head_seconds += seconds_since(start);

  if (micro.probe.size() > 0) {
    const Arena::Scope scope(context.arena);
    const auto [mass, tokens] = out_of_set_mass<T>(context, hidden, model.head_weight(), micro.probe.loss_batch(),
                                                   model_.vocab, {}, kProbeTokens);
    progressed.sums.probe_mass += mass;
    progressed.sums.probe_tokens += tokens;
  }
  model.backward(context, *activations, d_hidden);
}

template <class T>
StepOutcome Trainer<T>::step(const PreparedStep& prepared, double lr, bool stop) {
  const Context context = session_.context();
  Progressed progressed;
  const std::size_t count = prepared.micro_batches.size();
  for (std::size_t i = 0; i < count; ++i) {
    accumulate(context, prepared.micro_batches[i], prepared.negatives, progressed);
    optimizer_->reduce_gradients(context, i + 1 == count);
  }
  if (count == 0) optimizer_->reduce_gradients(context, true);

  StepSums sums = session_.groups().tp_rank() == 0 ? progressed.sums : StepSums{};
  sums.stop = stop ? 1.0 : 0.0;
  const StepResult result = optimizer_->step(context, lr, sums);

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
  metrics.head_ms = 1e3 * progressed.head_seconds;
  return outcome;
}

template class Trainer<float>;
template class Trainer<BFloat16>;

}  // namespace reprise
