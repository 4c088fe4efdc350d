#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "core/file_io.hpp"
#include "launcher/safetensors.hpp"
#include "layers/decoder_config.hpp"

namespace reprise {

/// One tensor of a Hugging Face decoder; vectors have cols = 1.
struct ModelTensor {
  std::string name;
  std::int64_t rows = 0, cols = 1;
  bool is_vector = false;
};

/// A small llama; change fields for the others.
inline DecoderConfig tiny_decoder_config() {
  DecoderConfig config;
  config.vocab_size = 96;
  config.hidden_size = 32;
  config.ffn_hidden_size = 48;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 256;
  return config;
}

/// Names and shapes as transformers stores them.
inline std::vector<ModelTensor> model_tensors(const DecoderConfig& config) {
  std::vector<ModelTensor> tensors;
  const std::int64_t hidden = config.hidden_size, ffn = config.ffn_hidden_size;
  const std::int64_t q = config.num_heads * config.head_dim, kv = config.num_kv_heads * config.head_dim;
  const auto linear = [&](const std::string& name, std::int64_t rows, std::int64_t cols, bool bias) {
    tensors.push_back({name + ".weight", rows, cols});
    if (bias) tensors.push_back({name + ".bias", rows, 1, true});
  };
  tensors.push_back({"model.embed_tokens.weight", config.vocab_rows(), hidden});
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    tensors.push_back({prefix + "input_layernorm.weight", hidden, 1, true});
    linear(prefix + "self_attn.q_proj", q, hidden, config.qkv_bias);
    linear(prefix + "self_attn.k_proj", kv, hidden, config.qkv_bias);
    linear(prefix + "self_attn.v_proj", kv, hidden, config.qkv_bias);
    linear(prefix + "self_attn.o_proj", hidden, q, config.attention_out_bias);
    if (config.qk_norm) {
      tensors.push_back({prefix + "self_attn.q_norm.weight", config.head_dim, 1, true});
      tensors.push_back({prefix + "self_attn.k_norm.weight", config.head_dim, 1, true});
    }
    tensors.push_back({prefix + "post_attention_layernorm.weight", hidden, 1, true});
    linear(prefix + "mlp.gate_proj", ffn, hidden, config.mlp_bias);
    linear(prefix + "mlp.up_proj", ffn, hidden, config.mlp_bias);
    linear(prefix + "mlp.down_proj", hidden, ffn, config.mlp_bias);
  }
  tensors.push_back({"model.norm.weight", hidden, 1, true});
  if (!config.tie_word_embeddings) tensors.push_back({"lm_head.weight", config.vocab_rows(), hidden});
  return tensors;
}

struct ModelFolderOptions {
  std::string dtype = "F32";         ///< F32, BF16 or F16
  std::size_t tensors_per_file = 0;  ///< > 0: sharded files with an index
  std::uint64_t seed = 1;
  bool transformers_5 = false;  ///< spelling of config.json
  float norm_value = 1.0f;      ///< mean of the norms' weights
};

inline nlohmann::ordered_json model_config_json(const DecoderConfig& config, const ModelFolderOptions& options = {}) {
  const bool is_qwen2 = config.model_type == "qwen2", is_qwen3 = config.model_type == "qwen3";
  nlohmann::ordered_json json;
  json["architectures"] = {config.model_type == "llama"     ? "LlamaForCausalLM"
                           : config.model_type == "mistral" ? "MistralForCausalLM"
                           : is_qwen2                       ? "Qwen2ForCausalLM"
                                                            : "Qwen3ForCausalLM"};
  json["model_type"] = config.model_type;
  json["vocab_size"] = config.vocab_rows();
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.ffn_hidden_size;
  json["num_hidden_layers"] = config.num_layers;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["head_dim"] = config.head_dim;
  json["hidden_act"] = "silu";
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["rms_norm_eps"] = static_cast<double>(config.norm_eps);
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["attention_dropout"] = 0.0;
  json["bos_token_id"] = 1;
  json["eos_token_id"] = 2;
  if (!is_qwen2) json["attention_bias"] = config.attention_out_bias;
  if (config.model_type == "llama") json["mlp_bias"] = config.mlp_bias;
  if (config.model_type == "mistral") json["sliding_window"] = nullptr;
  if (is_qwen2 || is_qwen3) {
    json["use_sliding_window"] = false;
    json["sliding_window"] = 4096;
    json["max_window_layers"] = config.num_layers;
  }
  nlohmann::ordered_json rope;
  if (config.rope_scaling.factor != 1.0) {
    rope["rope_type"] = "llama3";
    rope["factor"] = config.rope_scaling.factor;
    rope["low_freq_factor"] = config.rope_scaling.low_freq_factor;
    rope["high_freq_factor"] = config.rope_scaling.high_freq_factor;
    rope["original_max_position_embeddings"] = config.rope_scaling.original_max_position_embeddings;
  } else {
    rope["rope_type"] = "default";
  }
  const char* dtype = options.dtype == "F32" ? "float32" : options.dtype == "BF16" ? "bfloat16" : "float16";
  if (options.transformers_5) {
    rope["rope_theta"] = config.rope_theta;
    json["rope_parameters"] = rope;
    json["dtype"] = dtype;
  } else {
    json["rope_theta"] = config.rope_theta;
    json["rope_scaling"] = config.rope_scaling.factor != 1.0 ? rope : nlohmann::ordered_json(nullptr);
    json["torch_dtype"] = dtype;
  }
  return json;
}

/// A stand-in for tokenizer.json with the ids [0, vocab_size), the last two of them added tokens.
inline nlohmann::json tokenizer_json(std::int64_t vocab_size) {
  nlohmann::json vocab = nlohmann::json::object(), added = nlohmann::json::array();
  for (std::int64_t id = 0; id < vocab_size - 2; ++id) vocab[fmt::format("t{}", id)] = id;
  for (std::int64_t id = vocab_size - 2; id < vocab_size; ++id) added.push_back({{"id", id}});
  return {{"model", {{"vocab", vocab}}}, {"added_tokens", added}};
}

/// Writes a whole folder: config, random weights (norms near 1, the rest normal with standard deviation 0.05),
/// generation config and stand-ins for the tokenizer's files, which know config.vocab_size ids.
inline void make_model_folder(const std::filesystem::path& folder, const DecoderConfig& config,
                              const ModelFolderOptions& options = {}) {
  std::filesystem::create_directories(folder);
  write_file_atomically(folder / "config.json", model_config_json(config, options).dump(2) + "\n");
  write_file_atomically(folder / "generation_config.json", R"({"eos_token_id": [2, 3], "bos_token_id": 1})");
  write_file_atomically(folder / "tokenizer.json", tokenizer_json(config.vocab_size).dump());
  write_file_atomically(folder / "tokenizer_config.json", R"({"chat_template": "{{ messages }}", "eos_token": "c"})");

  const std::vector<ModelTensor> tensors = model_tensors(config);
  const std::size_t per_file = options.tensors_per_file == 0 ? tensors.size() : options.tensors_per_file;
  const std::size_t files = (tensors.size() + per_file - 1) / per_file;
  std::mt19937_64 generator(options.seed);
  nlohmann::json weight_map = nlohmann::json::object();
  for (std::size_t f = 0; f < files; ++f) {
    const std::string name = options.tensors_per_file == 0
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", f + 1, files);
    std::vector<SafetensorsTensor> declared;
    const std::size_t begin = f * per_file, end = std::min(tensors.size(), begin + per_file);
    for (std::size_t i = begin; i < end; ++i) {
      const ModelTensor& tensor = tensors[i];
      declared.push_back({tensor.name, options.dtype, {tensor.rows}});
      if (!tensor.is_vector) declared.back().shape.push_back(tensor.cols);
      weight_map[tensor.name] = name;
    }
    SafetensorsWriter writer(folder / name, declared, {{"format", "pt"}});
    for (std::size_t i = begin; i < end; ++i) {
      const float mean = tensors[i].name.find("norm") != std::string::npos ? options.norm_value : 0.0f;
      std::normal_distribution<float> normal(mean, 0.05f);
      std::vector<float> values(static_cast<std::size_t>(tensors[i].rows * tensors[i].cols));
      for (float& value : values) value = normal(generator);
      writer.write<float>(tensors[i].name, values);
    }
    writer.finish();
  }
  if (options.tensors_per_file != 0) {
    const nlohmann::json index = {{"metadata", nlohmann::json::object()}, {"weight_map", weight_map}};
    write_file_atomically(folder / "model.safetensors.index.json", index.dump(2));
  }
}

}  // namespace reprise
