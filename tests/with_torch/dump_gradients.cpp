#include <fmt/format.h>

#include <mutex>
#include <nlohmann/json.hpp>

#include "core/strict_json.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/model_session.hpp"
#include "launcher/safetensors.hpp"
#include "loss/loss.hpp"
#include "parallel/thread_communicator.hpp"

// What a model folder gives on a small batch, for tests that compare it with other programs.
//   dump_gradients MODEL                                       its configuration, as JSON
//   dump_gradients MODEL BATCH.json OUT.safetensors TENSOR [VOCAB_SIZE [SEQUENCE_PARALLEL]]
// BATCH.json: {"documents": [[id, ...], ...], "weights": [[w, ...], ...]}; every token but the first of a document is a
// target, its weight that at the same place. OUT: the gradient of sum_t w_t l_t by every parameter under its name, and
// "log_probs" of the targets in order; float32, the same for every TENSOR to rounding.

namespace reprise {
namespace {

struct Batch {
  std::vector<std::int32_t> tokens, row, gold;
  std::vector<std::int64_t> offsets{0};
  std::vector<float> weight;
};

Batch read_batch(const std::filesystem::path& path) {
  const nlohmann::json json = read_json_object(path, ErrorKind::kData);
  Batch batch;
  for (std::size_t d = 0; d < json["documents"].size(); ++d) {
    const auto ids = json["documents"][d].get<std::vector<std::int32_t>>();
    const auto weights = json["weights"][d].get<std::vector<float>>();
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      batch.row.push_back(static_cast<std::int32_t>(batch.tokens.size()));
      batch.tokens.push_back(ids[i]);
      batch.gold.push_back(ids[i + 1]);
      batch.weight.push_back(weights[i + 1]);
    }
    batch.offsets.push_back(static_cast<std::int64_t>(batch.tokens.size()));
  }
  return batch;
}

/// Whole gradients, put together from the ranks' blocks.
struct Result {
  std::mutex mutex;
  std::vector<ParameterSpec> specs;
  std::vector<std::vector<float>> gradients;
  std::vector<float> log_probs;

  void add(LoadedModel<float>& model, VectorView<const float> token_loss) {
    const std::lock_guard lock(mutex);
    ParameterSet<float>& parameters = model.parameters;
    specs = parameters.specs();
    gradients.resize(specs.size());
    for (std::int64_t p = 0; p < parameters.count(); ++p) {
      const ParameterSpec& spec = parameters.spec(p);
      std::vector<float>& whole = gradients[static_cast<std::size_t>(p)];
      whole.resize(static_cast<std::size_t>(spec.global_size()));
      const MatrixView<const float> own = parameters.gradient(p);
      for (std::int64_t r = 0; r < own.rows; ++r) {
        for (std::int64_t c = 0; c < own.cols; ++c) {
          const std::int64_t at = (spec.row_begin + r) * spec.global_cols + spec.col_begin + c;
          float& element = whole[static_cast<std::size_t>(at)];
          element = own(r, c) + (spec.sum_over_tp ? element : 0.0f);
        }
      }
    }
    log_probs.clear();
    for (const float nats : token_loss) log_probs.push_back(-nats);
  }

  void write(const std::filesystem::path& path) const {
    std::vector<SafetensorsTensor> tensors{{"log_probs", "F32", {static_cast<std::int64_t>(log_probs.size())}}};
    for (const ParameterSpec& spec : specs) {
      tensors.push_back({spec.name, "F32", {spec.global_rows}});
      if (!spec.is_vector) tensors.back().shape.push_back(spec.global_cols);
    }
    SafetensorsWriter writer(path, tensors);
    writer.write<float>("log_probs", log_probs);
    for (std::size_t p = 0; p < specs.size(); ++p) writer.write<float>(specs[p].name, gradients[p]);
    writer.finish();
  }
};

void compute(Communicator& world, const std::filesystem::path& folder, const Batch& batch, std::int64_t vocab_size,
             bool sequence_parallel, Result& result) {
  Session session(world, world.size(), sequence_parallel, 1, {.device = "cpu"});
  const auto model = load_model<float>(session, folder, false, vocab_size);
  const Context context = session.context();
  const auto loss = make_head_loss<float>(Normalization::kFull, model->vocab);
  DecoderModel<float>::ActivationsPtr activations;
  const MatrixView<float> hidden =
      model->model->forward(context, {batch.tokens, batch.offsets}, Recompute::kNone, activations);
  const MatrixView<float> d_hidden = context.arena.matrix<float>(hidden.rows, hidden.cols, "d_hidden");
  const LossBatch targets{batch.row, batch.gold, batch.weight, {}, {}};
  const auto output = loss->forward(context, hidden, model->model->head_weight(), targets);
  loss->backward(context, model->model->head_weight(), d_hidden, model->model->head_gradient());
  model->model->backward(context, *activations, d_hidden);
  result.add(*model, output.token_loss);
}

void print_config(const DecoderConfig& config) {
  nlohmann::ordered_json json;
  json["model_type"] = config.model_type;
  json["vocab_size"] = config.vocab_size;
  json["padding_rows"] = config.padding_rows;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.ffn_hidden_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["rms_norm_eps"] = config.norm_eps;
  json["rope_theta"] = config.rope_theta;
  json["factor"] = config.rope_scaling.factor;
  json["low_freq_factor"] = config.rope_scaling.low_freq_factor;
  json["high_freq_factor"] = config.rope_scaling.high_freq_factor;
  json["original_max_position_embeddings"] = config.rope_scaling.original_max_position_embeddings;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["qkv_bias"] = config.qkv_bias;
  json["attention_out_bias"] = config.attention_out_bias;
  json["mlp_bias"] = config.mlp_bias;
  json["qk_norm"] = config.qk_norm;
  fmt::print("{}\n", json.dump());
}

int run(const std::vector<std::string>& words) {
  if (words.size() == 1) {
    print_config(read_decoder_config(words[0]));
    return 0;
  }
  require(4 <= words.size() && words.size() <= 6, ErrorKind::kUsage,
          "dump_gradients MODEL [BATCH.json OUT.safetensors TENSOR [VOCAB_SIZE [SEQUENCE_PARALLEL]]]");
  const Batch batch = read_batch(words[1]);
  const std::int64_t vocab_size = words.size() > 4 ? std::stoll(words[4]) : 0;
  const bool sequence_parallel = words.size() > 5 && words[5] == "1";
  Result result;
  run_ranks(std::stoi(words[3]),
            [&](Communicator& world) { compute(world, words[0], batch, vocab_size, sequence_parallel, result); });
  result.write(words[2]);
  return 0;
}

}  // namespace
}  // namespace reprise

int main(int argc, char** argv) {
  return reprise::report_failures([&] { return reprise::run({argv + 1, argv + argc}); });
}
