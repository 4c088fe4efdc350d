#include "layers/decoder_config.hpp"

#include <array>
#include <cmath>
#include <string_view>

#include "core/error.hpp"

namespace reprise {

namespace {

void require_positive(std::string_view key, std::int64_t value) {
  require(value > 0, ErrorKind::kUsage, "{} = {}: must be a positive integer", key, value);
}

void validate_rope(const DecoderConfig& config) {
  require(std::isfinite(config.rope_theta) && config.rope_theta > 0.0, ErrorKind::kUsage,
          "rope_theta = {}: must be a positive number", config.rope_theta);
  const DecoderConfig::RopeScaling& scaling = config.rope_scaling;
  require(std::isfinite(scaling.factor) && scaling.factor >= 1.0, ErrorKind::kUsage,
          "rope_scaling.factor = {}: must be at least 1", scaling.factor);
  require(std::isfinite(scaling.low_freq_factor) && scaling.low_freq_factor > 0.0, ErrorKind::kUsage,
          "rope_scaling.low_freq_factor = {}: must be a positive number", scaling.low_freq_factor);
  require(std::isfinite(scaling.high_freq_factor) && scaling.high_freq_factor > scaling.low_freq_factor,
          ErrorKind::kUsage, "rope_scaling.high_freq_factor = {}: must exceed low_freq_factor = {}",
          scaling.high_freq_factor, scaling.low_freq_factor);
  require_positive("rope_scaling.original_max_position_embeddings", scaling.original_max_position_embeddings);
}

}  // namespace

void DecoderConfig::validate() const {
  constexpr std::array<std::string_view, 4> kTypes = {"llama", "mistral", "qwen2", "qwen3"};
  bool is_known = false;
  for (const std::string_view type : kTypes) is_known = is_known || type == model_type;
  require(is_known, ErrorKind::kUsage, "model_type = \"{}\": not supported; llama, mistral, qwen2 and qwen3 are",
          model_type);
  require_positive("vocab_size", vocab_size);
  require(padding_rows >= 0, ErrorKind::kUsage, "vocab_size = {}: exceeds the {} rows of embedding and head",
          vocab_size, vocab_rows());
  require_positive("hidden_size", hidden_size);
  require_positive("intermediate_size", ffn_hidden_size);
  require_positive("num_hidden_layers", num_layers);
  require_positive("num_attention_heads", num_heads);
  require_positive("num_key_value_heads", num_kv_heads);
  require_positive("head_dim", head_dim);
  require_positive("max_position_embeddings", max_position_embeddings);
  require(num_heads % num_kv_heads == 0, ErrorKind::kUsage,
          "num_key_value_heads = {}: must divide num_attention_heads = {}", num_kv_heads, num_heads);
  require(head_dim % 2 == 0, ErrorKind::kUsage, "head_dim = {}: is odd, rotary embedding needs pairs", head_dim);
  require(norm_eps > 0.0f && norm_eps < 1.0f, ErrorKind::kUsage, "rms_norm_eps = {}: must lie in (0, 1)", norm_eps);
  validate_rope(*this);
}

}  // namespace reprise
