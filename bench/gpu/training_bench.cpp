#include "bench/candidate_sets.hpp"
#include "bench/gpu/bench_device.hpp"
#include "layers/decoder_model.hpp"
#include "loss/loss.hpp"
#include "optimizer/optimizer.hpp"

namespace reprise {

namespace {

template <class T>
void declare_matrices(BenchDevice& device, ParameterSet<T>& parameters, std::int64_t size) {
  const std::int64_t hidden = device.size(4096, 16), count = std::max<std::int64_t>(1, size / (hidden * hidden));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::string name = "layers." + std::to_string(i);
    parameters.add({.name = name + ".weight",
                    .layer = name,
                    .global_rows = hidden,
                    .global_cols = hidden,
                    .row_end = hidden,
                    .col_end = hidden});
    parameters.add({.name = name + ".norm",
                    .layer = name,
                    .global_rows = hidden,
                    .global_cols = 1,
                    .row_end = hidden,
                    .col_end = 1,
                    .is_vector = true,
                    .decay = false});
  }
  parameters.allocate(device.stream, std::int64_t{1} << 24, 1);
}

/// Seconds of reduce_gradients and step; the gradients, which a step leaves at zero, are filled before each.
double step_seconds(BenchDevice& device, const std::string& name, std::int64_t size) {
  ParameterSet<BFloat16> parameters;
  declare_matrices(device, parameters, size);
  device.fill_random<BFloat16>(parameters.values(), 1, 0.02f);
  const auto optimizer = make_optimizer<BFloat16>(device.context(), {.name = name}, parameters);
  Buffer<float> gradients(device.stream, parameters.layout().size, "gradients");
  device.fill_random<float>(gradients.view(), 2, 1e-3f);
  const auto refill = [&] { copy_on_device<float>(device.stream, gradients.view(), parameters.gradients()); };
  const double with_fill = device.seconds([&] {
    refill();
    optimizer->reduce_gradients(device.context(), true);
    (void)optimizer->step(device.context(), 1e-4, {.weight = 100.0});
  });
  return with_fill - device.seconds(refill);
}

DecoderConfig billion_parameters(const BenchDevice& device) {
  DecoderConfig config;  // the shape of Llama-3.2-1B
  config.vocab_size = device.size(128256, 512);
  config.hidden_size = device.size(2048, 32);
  config.ffn_hidden_size = device.size(8192, 64);
  config.num_layers = device.size(16, 2);
  config.num_heads = device.size(32, 2);
  config.num_kv_heads = device.size(8, 1);
  config.head_dim = device.size(64, 16);
  config.tie_word_embeddings = true;
  return config;
}

}  // namespace

Table bench_optimizers(BenchDevice& device) {
  Table rows = Table::array();
  for (const std::int64_t millions : {128, 1024}) {
    const std::int64_t size = device.size(millions << 20, 1024);
    const double adamw = step_seconds(device, "adamw", size), moclip = step_seconds(device, "moclip", size);
    // Sums read G (and m); the update reads and writes G, m, v and the master weight and writes the bfloat16 parameter.
    const double adamw_bytes = 4 + 32 + 2, moclip_bytes = 8 + 32 + 2;
    const auto rate = [&](double bytes, double seconds) {
      return device.copy_bytes > 0.0 ? bytes * static_cast<double>(size) / seconds / device.copy_bytes : 0.0;
    };
    rows.push_back({{"parameters", size},
                    {"moclip_ms", 1e3 * moclip},
                    {"adamw_ms", 1e3 * adamw},
                    {"ratio", moclip / adamw},
                    {"moclip_of_copy", rate(moclip_bytes, moclip)},
                    {"adamw_of_copy", rate(adamw_bytes, adamw)}});
  }
  return rows;
}

Table bench_steps(BenchDevice& device) {
  const DecoderConfig config = billion_parameters(device);
  const VocabPartition vocab = VocabPartition::even(config.vocab_size, config.vocab_size, 1);
  ParameterSet<BFloat16> parameters;
  const DecoderModel<BFloat16> model(config, vocab, device.groups, parameters, false);
  parameters.allocate(device.stream, std::int64_t{1} << 24, 1);
  device.fill_random<BFloat16>(parameters.values(), 1, 0.02f);
  const auto optimizer = make_optimizer<BFloat16>(device.context(), {}, parameters);

  const std::int64_t length = device.size(512, 16), documents = device.size(8, 2), tokens = documents * length;
  std::vector<std::int64_t> offsets;
  for (std::int64_t d = 0; d <= documents; ++d) offsets.push_back(d * length);
  const HeadBatch targets(
      make_candidate_sets(device.host, kSetGenerators[0], tokens, config.vocab_size, device.size(100, 8)), 8);
  std::vector<std::int32_t> ids = targets.gold;  // the token before the target
  std::rotate(ids.begin(), ids.end() - 1, ids.end());

  Table rows = Table::array();
  for (const auto& [name, normalization] :
       {std::pair{"full", Normalization::kFull}, {"tile-8", Normalization::kTile}}) {
    const auto loss = make_head_loss<BFloat16>(normalization, vocab);
    const LossBatch batch = targets.view();
    const auto step = [&](bool with_head) {
      const Context context = device.context();
      DecoderModel<BFloat16>::ActivationsPtr activations;
      const auto hidden = model.forward(context, {ids, offsets}, Recompute::kNone, activations);
      const auto d_hidden = device.arena.matrix<BFloat16>(hidden.rows, hidden.cols, "d_hidden");
      double loss_sum = 0.0;
      if (with_head) {
        loss_sum = loss->forward(context, hidden, model.head_weight(), batch).weighted_sum;
        loss->backward(context, model.head_weight(), d_hidden, model.head_gradient());
      } else {
        fill(device.stream, d_hidden.flat(), 1e-6f);
      }
      model.backward(context, *activations, d_hidden);
      optimizer->reduce_gradients(context, true);
      (void)optimizer->step(context, 1e-5, {.weight = static_cast<double>(tokens), .weighted_loss = loss_sum});
      activations.reset();
      device.arena.reset();
    };
    const double whole = device.seconds([&] { step(true); });
    const double head_only = whole - device.seconds([&] { step(false); });
    rows.push_back({{"head", name},
                    {"parameters", parameters.layout().size},
                    {"tokens", tokens},
                    {"step_ms", 1e3 * whole},
                    {"head_ms", 1e3 * head_only},
                    {"tokens/s", static_cast<double>(tokens) / whole},
                    {"arena_GB", 1e-9 * static_cast<double>(device.arena.high_water_bytes())}});
  }
  return rows;
}

}  // namespace reprise
