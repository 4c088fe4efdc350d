#pragma once

#include <cstdint>
#include <string>

namespace reprise {

/// Shape of a Hugging Face decoder (llama, mistral, qwen2, qwen3); read from config.json by launcher/hugging_face.
struct DecoderConfig {
  std::string model_type = "llama";
  std::int64_t vocab_size = 0;    ///< real V: ids that may occur
  std::int64_t padding_rows = 0;  ///< rows of embedding and head beyond them: never looked up, in no softmax
  std::int64_t hidden_size = 0;
  std::int64_t ffn_hidden_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float norm_eps = 1e-5f;
  double rope_theta = 10000.0;
  /// rope_scaling of type "llama3"; factor 1 = none.
  struct RopeScaling {
    double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
    std::int64_t original_max_position_embeddings = 8192;
  } rope_scaling;
  std::int64_t max_position_embeddings = 2048;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;            ///< qwen2, or llama with attention_bias
  bool attention_out_bias = false;  ///< llama with attention_bias
  bool mlp_bias = false;
  bool qk_norm = false;  ///< qwen3: RMSNorm over head_dim of q and k before RoPE
  /// Rows of embedding and head.
  [[nodiscard]] std::int64_t vocab_rows() const { return vocab_size + padding_rows; }
  /// Throws Error(kUsage) naming the config.json key, the value and the legal ones.
  void validate() const;
};

}  // namespace reprise
