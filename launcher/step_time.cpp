#include "launcher/step_time.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace reprise {

namespace {

constexpr double kLaunchSeconds = 4e-6;  ///< of a product beyond its work
/// Collectives that run beside products take multiprocessors from them: this part of the hidden time is lost.
constexpr double kOverlapLoss = 0.1;
/// Part of a data-parallel exchange that no window hides: the last bucket, the first one.
constexpr double kUnhidden = 1.0 / 8.0;

struct LayerTime {
  double products = 0.0, attention = 0.0, passes = 0.0;
  [[nodiscard]] double sum() const { return products + attention + passes; }
};

/// Widths of one rank.
struct Widths {
  double tokens, rows, hidden, query, key, ffn, inputs;
  explicit Widths(const TimedStep& step)
      : tokens(step.tokens),
        rows(step.sequence_parallel ? step.tokens / static_cast<double>(step.tensor) : step.tokens),
        hidden(static_cast<double>(step.model.hidden)),
        query(static_cast<double>(step.model.heads * step.model.head_dim / step.tensor)),
        key(static_cast<double>(std::max<std::int64_t>(1, step.model.kv_heads / step.tensor) * step.model.head_dim)),
        ffn(static_cast<double>(step.model.ffn / step.tensor)),
        inputs(static_cast<double>(step.model.mlp_inputs)) {}
};

/// Seconds of reading and writing `elements` once.
double pass_seconds(const Hardware& hardware, const TimedStep& step, double elements) {
  const double bytes = step.passes * elements * static_cast<double>(step.element_bytes);
  return bytes / (hardware.memory_share * hardware.memory_rate);
}

LayerTime forward_time(const Hardware& hardware, const TimedStep& step, const Widths& w) {
  const auto product = [&](double n, double k) {
    return product_seconds(hardware, w.tokens, n, k, step.element_bytes);
  };
  LayerTime time;
  time.products = product(w.query + 2.0 * w.key, w.hidden) + product(w.hidden, w.query) +
                  product(w.inputs * w.ffn, w.hidden) + product(w.hidden, w.ffn);
  time.attention = 4.0 * w.query * step.pairs / step.attention_forward;
  // Two norms and two residual additions; rotation of q and k; the MLP's activation.
  const double activation = w.inputs > 1.0 ? 3.0 : 2.0;
  time.passes = pass_seconds(
      hardware, step,
      2.0 * (2.0 + 3.0) * w.rows * w.hidden + 2.0 * w.tokens * (w.query + w.key) + activation * w.tokens * w.ffn);
  return time;
}

LayerTime backward_time(const Hardware& hardware, const TimedStep& step, const Widths& w) {
  const auto products = [&](double n, double k) {
    const double inputs = product_seconds(hardware, w.tokens, k, n, step.element_bytes);
    return step.frozen ? inputs : inputs + product_seconds(hardware, n, k, w.tokens, step.element_bytes, true);
  };
  LayerTime time;
  time.products = products(w.query + 2.0 * w.key, w.hidden) + products(w.hidden, w.query) +
                  products(w.inputs * w.ffn, w.hidden) + products(w.hidden, w.ffn);
  time.attention = 2.0 * step.attention_backward_products * w.query * step.pairs / step.attention_backward;
  const double activation = w.inputs > 1.0 ? 5.0 : 3.0;
  time.passes = pass_seconds(
      hardware, step,
      2.0 * (4.0 + 3.0) * w.rows * w.hidden + 2.0 * w.tokens * (w.query + w.key) + activation * w.tokens * w.ffn);
  return time;
}

double recompute_time(TimedRecompute recompute, const LayerTime& forward) {
  switch (recompute) {
    case TimedRecompute::kNone: return 0.0;
    case TimedRecompute::kSelective: return forward.attention;
    case TimedRecompute::kHalf: return 0.5 * (forward.products + forward.passes);
    case TimedRecompute::kLayer: return forward.sum();
  }
  return 0.0;
}

double exchange_seconds(const Hardware& hardware, const Exchange& exchange) {
  return exchange_seconds(hardware, exchange.calls, exchange.bytes, exchange.ranks, exchange.stride);
}

/// What a step waits for an exchange that runs beside `window` seconds of work.
double exposed(double exchange, double window) {
  return std::max(kUnhidden * exchange, exchange - window) + kOverlapLoss * std::min(exchange, window);
}

void add_data_time(const Hardware& hardware, const TimedStep& step, double forward, double backward, StepTime& time) {
  const double gradients = exchange_seconds(hardware, step.gradients);
  const double parameters = exchange_seconds(hardware, step.parameters);
  const double other = exchange_seconds(hardware, step.other);
  if (step.parameters_sharded) {
    const double window = time.total() / step.micro_batches;
    const double all = gradients + parameters;
    time.data_all = step.micro_batches * all;
    time.data_exposed =
        step.micro_batches * (std::max(0.0, all - window) + kOverlapLoss * std::min(all, window)) + other;
    return;
  }
  time.data_all = gradients + parameters + other;
  time.data_exposed = time.data_all;
  if (!step.data_overlapped) return;
  const double last = gradients / step.gradient_passes;
  time.data_exposed = gradients - last + exposed(last, backward) + exposed(parameters, forward) + other;
}

}  // namespace

double TimedModel::layer_parameters() const {
  const auto h = static_cast<double>(hidden);
  const auto queries = static_cast<double>(heads * head_dim), keys = static_cast<double>(kv_heads * head_dim);
  const double attention = h * (2.0 * queries + 2.0 * keys);
  return static_cast<double>(layers) * (attention + static_cast<double>((mlp_inputs + 1) * ffn) * h);
}

double product_seconds(const Hardware& hardware, double m, double n, double k, std::int64_t element_bytes,
                       bool accumulated) {
  const bool narrow = hardware.gpu && element_bytes == 4;  // float32 does not run on the tensor cores
  const double rate = hardware.matrix_share * (narrow ? hardware.vector_rate : hardware.matrix_rate);
  double seconds = 2.0 * m * n * k / rate;
  if (hardware.processors > 0) {
    struct Tile {
      double rows, columns, share;
    };
    // Smaller tiles fill the last wave better and feed the units worse.
    constexpr std::array<Tile, 5> kTiles = {
        {{256, 128, 1.0}, {128, 256, 1.0}, {128, 128, 0.92}, {128, 64, 0.8}, {64, 64, 0.6}}};
    constexpr double kRamp = 192.0;
    const auto processors = static_cast<double>(hardware.processors);
    double best = 1e30;
    for (const Tile& tile : kTiles) {
      const double waves = std::ceil(std::ceil(m / tile.rows) * std::ceil(n / tile.columns) / processors);
      best = std::min(best, waves * processors * tile.rows * tile.columns * 2.0 * (k + kRamp) / (rate * tile.share));
    }
    seconds = best;
  }
  const auto bytes = static_cast<double>(element_bytes);
  const double moved = bytes * k * (m + n) + (accumulated ? 8.0 : bytes) * m * n;
  seconds = std::max(seconds, moved / (hardware.memory_share * hardware.memory_rate));
  return seconds + (hardware.gpu ? kLaunchSeconds : 0.0);
}

double forward_seconds(const Hardware& hardware, const TimedStep& step) {
  const double layer = forward_time(hardware, step, Widths(step)).sum();
  return step.micro_batches * static_cast<double>(step.model.layers) * layer;
}

StepTime estimate_step_time(const Hardware& hardware, const TimedStep& step) {
  const Widths w(step);
  const LayerTime forward = forward_time(hardware, step, w), backward = backward_time(hardware, step, w);
  const double layers = static_cast<double>(step.model.layers) / static_cast<double>(step.pipeline);
  const double times = step.micro_batches * layers;
  StepTime time;
  time.products = times * (forward.products + backward.products);
  time.attention = times * (forward.attention + backward.attention);
  time.recompute = times * recompute_time(step.recompute, forward);
  constexpr double kEmbeddingPasses = 8.0;
  const double once = step.micro_batches / static_cast<double>(step.pipeline);
  time.passes = times * (forward.passes + backward.passes) +
                once * pass_seconds(hardware, step, kEmbeddingPasses * w.tokens * w.hidden);
  time.head = once * head_seconds(hardware, step.head);

  for (const Exchange& exchange : step.tensor_exchanges) time.tensor_all += exchange_seconds(hardware, exchange);
  time.tensor_exposed = (1.0 - step.tensor_hidden) * time.tensor_all;
  const double stages = static_cast<double>(step.pipeline - 1);
  time.bubble = time.total() * stages / (static_cast<double>(step.virtual_stages) * step.micro_batches);
  add_data_time(hardware, step, layers * forward.sum(), layers * backward.sum(), time);

  // Gradients are cleared once; a float32 copy of the weights is the master of the others.
  const double update = step.optimizer_bytes * step.optimizer_parameters + 4.0 * step.local_parameters;
  time.optimizer = update / (hardware.memory_share * hardware.memory_rate);

  const double head =
      step.head.kind == TimedHead::Kind::kFull ? step.head.targets * step.model.vocab_parameters() : 0.0;
  const double attention = 2.0 * static_cast<double>(step.model.heads * step.model.head_dim) * step.pairs;
  const double products =
      step.tokens * step.model.layer_parameters() + static_cast<double>(step.model.layers) * attention + head;
  time.model_flops =
      (step.frozen ? 4.0 : 6.0) * step.micro_batches * products / static_cast<double>(step.tensor * step.pipeline);
  return time;
}

}  // namespace reprise
