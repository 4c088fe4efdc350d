#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/strict_json.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/tokenizer_info.hpp"

namespace reprise {

namespace {

using nlohmann::json;

/// A JSON object whose keys are read with checks; `what` and `prefix` name it in messages.
class Keys {
 public:
  Keys(const json& object, std::string what, std::string prefix = "")
      : object_(object), what_(std::move(what)), prefix_(std::move(prefix)) {}

  /// False for an absent key and for null.
  [[nodiscard]] bool has(const std::string& key) const { return object_.contains(key) && !object_[key].is_null(); }
  [[nodiscard]] const json& value(const std::string& key) const { return object_[key]; }

  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    const std::string text = object_.contains(key) ? object_[key].dump(-1, ' ', true, json::error_handler_t::replace)
                                                   : std::string("absent");
    fail(ErrorKind::kUsage, "{}: {}{} = {}: {}", what_, prefix_, key, text.substr(0, 200), why);
  }
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t minimum = 1) const {
    constexpr std::int64_t kMaximum = (std::int64_t{1} << 31) - 1;
    if (!has(key)) refuse(key, "is needed");
    const bool fits = value(key).is_number_unsigned() && value(key).get<std::uint64_t>() <= std::uint64_t{kMaximum} &&
                      value(key).get<std::int64_t>() >= minimum;
    if (!fits) refuse(key, fmt::format("must be an integer in [{}, {}]", minimum, kMaximum));
    return value(key).get<std::int64_t>();
  }
  [[nodiscard]] std::int64_t integer_or(const std::string& key, std::int64_t fallback) const {
    return has(key) ? integer(key) : fallback;
  }
  [[nodiscard]] bool is_null(const std::string& key) const { return object_.contains(key) && object_[key].is_null(); }
  [[nodiscard]] double positive(const std::string& key) const {
    if (!has(key)) refuse(key, "is needed");
    const bool fits = value(key).is_number() && std::isfinite(value(key).get<double>()) && value(key).get<double>() > 0;
    if (!fits) refuse(key, "must be a positive number");
    return value(key).get<double>();
  }
  [[nodiscard]] double positive_or(const std::string& key, double fallback) const {
    return has(key) ? positive(key) : fallback;
  }
  [[nodiscard]] bool boolean_or(const std::string& key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!value(key).is_boolean()) refuse(key, "must be true or false");
    return value(key).get<bool>();
  }
  [[nodiscard]] std::string text(const std::string& key) const {
    if (!has(key) || !value(key).is_string()) refuse(key, "must be a string");
    return value(key).get<std::string>();
  }
  /// The object under a key.
  [[nodiscard]] Keys object(const std::string& key) const {
    if (!value(key).is_object()) refuse(key, "must be an object");
    return Keys(value(key), what_, prefix_ + key + ".");
  }
  [[nodiscard]] const json& raw() const { return object_; }

 private:
  const json& object_;
  std::string what_, prefix_;
};

struct Family {
  std::string_view model_type, architecture;
};
constexpr std::array<Family, 4> kFamilies = {{{"llama", "LlamaForCausalLM"},
                                              {"mistral", "MistralForCausalLM"},
                                              {"qwen2", "Qwen2ForCausalLM"},
                                              {"qwen3", "Qwen3ForCausalLM"}}};

/// null, false, 0, "", [] and {}: a feature that is off.
bool is_off(const json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_number() && value.get<double>() == 0.0) ||
         (value.is_string() && value.get_ref<const std::string&>().empty()) || (value.is_structured() && value.empty());
}

bool is_one(const json& value) {
  return value.is_number() && value.get<double>() == 1.0;
}

void check_architecture(const Keys& keys, const Family& family) {
  if (!keys.has("architectures")) return;
  const json& list = keys.value("architectures");
  const bool fits = list.is_array() && list.size() == 1 && list[0] == family.architecture;
  if (!fits)
    keys.refuse("architectures", fmt::format("must be [\"{}\"] for {}", family.architecture, family.model_type));
}

/// Refuses the keys that would change what the model computes.
void check_features(const Keys& keys) {
  constexpr std::string_view kUnsupported = "not supported; llama, mistral, qwen2 and qwen3 decoders as they are";
  constexpr std::array<std::string_view, 14> kKeys = {"auto_map",         "is_encoder_decoder",
                                                      "pruned_heads",     "add_cross_attention",
                                                      "use_mrope",        "alibi",
                                                      "no_rope_layers",   "qk_layernorm",
                                                      "use_qk_norm",      "use_parallel_residual",
                                                      "parallel_attn",    "attention_chunk_size",
                                                      "per_layer_config", "use_bidirectional_attention"};
  constexpr std::array<std::string_view, 12> kParts = {"expert", "moe_",  "router", "softcap", "dropout", "quantiz",
                                                       "vision", "mamba", "lora",   "sparse",  "mtp",     "nextn"};
  constexpr std::array<std::string_view, 6> kOneOrOff = {
      "multiplier", "logit_scale", "logits_scaling", "partial_rotary_factor", "rotary_pct", "query_pre_attn_scalar"};
  for (const auto& [key, value] : keys.raw().items()) {
    if (is_off(value)) continue;
    const std::string& name = key;
    const auto contains = [&](std::string_view part) { return name.find(part) != std::string::npos; };
    const bool scales = std::any_of(kOneOrOff.begin(), kOneOrOff.end(), contains) && !is_one(value);
    const bool nested = name.ends_with("_config") && name != "generation_config";
    const bool listed = std::find(kKeys.begin(), kKeys.end(), name) != kKeys.end();
    if (scales || nested || listed || std::any_of(kParts.begin(), kParts.end(), contains)) {
      keys.refuse(name, std::string(kUnsupported));
    }
  }
  if (!keys.boolean_or("is_causal", true)) keys.refuse("is_causal", std::string(kUnsupported));
  if (keys.has("hidden_act") && keys.text("hidden_act") != "silu" && keys.text("hidden_act") != "swish") {
    keys.refuse("hidden_act", "not supported; silu is");
  }
}

/// True where every layer is said to attend to all tokens.
bool check_layer_types(const Keys& keys, const DecoderConfig& config) {
  if (!keys.has("layer_types")) return false;
  const json& types = keys.value("layer_types");
  const bool all_full = types.is_array() && std::all_of(types.begin(), types.end(), [](const json& type) {
                          return type == "full_attention" || type == "attention";
                        });
  if (!all_full) keys.refuse("layer_types", "not supported; every layer must be \"full_attention\"");
  if (static_cast<std::int64_t>(types.size()) != config.num_layers) {
    keys.refuse("layer_types", fmt::format("must name each of num_hidden_layers = {} layers", config.num_layers));
  }
  return true;
}

void check_sliding_window(const Keys& keys, const DecoderConfig& config) {
  const bool all_full = check_layer_types(keys, config);
  if (config.model_type == "qwen2" || config.model_type == "qwen3") {
    if (all_full || !keys.boolean_or("use_sliding_window", false)) return;
    const bool absent = !keys.raw().contains("sliding_window");  // 4096
    if (!absent && !keys.has("sliding_window")) return;
    if ((absent ? 4096 : keys.integer("sliding_window")) >= config.max_position_embeddings) return;
    if (keys.has("max_window_layers") && keys.integer("max_window_layers", 0) >= config.num_layers) return;
    keys.refuse("use_sliding_window", "an active sliding window is not supported");
  }
  const bool is_default = config.model_type == "mistral" && !keys.raw().contains("sliding_window");
  if (!is_default && !keys.has("sliding_window")) return;
  const std::int64_t window = is_default ? 4096 : keys.integer("sliding_window");
  if (window >= config.max_position_embeddings) return;  // no sequence is long enough to notice it
  keys.refuse("sliding_window", fmt::format("an active sliding window is not supported ({}null is off)",
                                            is_default ? "absent means 4096 for mistral; " : ""));
}

/// Some families keep it beside the rope's own keys; here it could only contradict them.
void check_original_positions(const Keys& keys, const DecoderConfig& config) {
  constexpr const char* kKey = "original_max_position_embeddings";
  if (!keys.has(kKey)) return;
  const bool scales = config.rope_scaling.factor != 1.0;
  if (!scales || keys.integer(kKey) != config.rope_scaling.original_max_position_embeddings) {
    keys.refuse(kKey, "not supported beside the rope's parameters");
  }
}

/// rope_theta and rope_scaling of transformers 4, or the rope_parameters of transformers 5.
void read_rope(const Keys& keys, DecoderConfig& config) {
  config.rope_theta = keys.positive_or("rope_theta", 10000.0);
  const bool is_new = keys.has("rope_parameters");
  if (is_new && keys.has("rope_scaling") && keys.value("rope_scaling") != keys.value("rope_parameters")) {
    keys.refuse("rope_scaling", "contradicts rope_parameters");
  }
  if (!is_new && !keys.has("rope_scaling")) return;
  const Keys rope = keys.object(is_new ? "rope_parameters" : "rope_scaling");
  if (rope.has("rope_theta")) {
    const double theta = rope.positive("rope_theta");
    if (keys.has("rope_theta") && theta != config.rope_theta) rope.refuse("rope_theta", "contradicts rope_theta");
    config.rope_theta = theta;
  }
  const std::string key = rope.has("rope_type") ? "rope_type" : "type";
  const std::string type = rope.has(key) ? rope.text(key) : "default";
  if (rope.has("type") && rope.text("type") != type) rope.refuse("type", "contradicts rope_type");
  if (type != "default" && type != "llama3") rope.refuse(key, "not supported; default and llama3 are");
  for (const auto& [name, value] : rope.raw().items()) {
    constexpr std::array<std::string_view, 3> kCommon = {"rope_type", "type", "rope_theta"};
    constexpr std::array<std::string_view, 4> kLlama3 = {"factor", "low_freq_factor", "high_freq_factor",
                                                         "original_max_position_embeddings"};
    const auto is_name = [&, &rope_key = name](std::string_view known) { return rope_key == known; };
    const bool known = std::any_of(kCommon.begin(), kCommon.end(), is_name) ||
                       (type == "llama3" && std::any_of(kLlama3.begin(), kLlama3.end(), is_name)) ||
                       (name == "partial_rotary_factor" && is_one(value)) || value.is_null();
    if (!known) rope.refuse(name, fmt::format("not supported for rope type \"{}\"", type));
  }
  if (type == "default") return;
  auto& scaling = config.rope_scaling;
  scaling.factor = rope.positive("factor");
  scaling.low_freq_factor = rope.positive("low_freq_factor");
  scaling.high_freq_factor = rope.positive("high_freq_factor");
  scaling.original_max_position_embeddings = rope.integer("original_max_position_embeddings");
  if (scaling.factor < 1.0) rope.refuse("factor", "must be at least 1");
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    rope.refuse("high_freq_factor", fmt::format("must exceed low_freq_factor = {}", scaling.low_freq_factor));
  }
}

void read_sizes(const Keys& keys, DecoderConfig& config) {
  config.vocab_size = keys.integer("vocab_size");
  config.hidden_size = keys.integer("hidden_size");
  config.ffn_hidden_size = keys.integer("intermediate_size");
  config.num_layers = keys.integer("num_hidden_layers");
  config.num_heads = keys.integer("num_attention_heads");
  // null means "as many as heads"; only llama means the same by leaving the key out.
  const bool as_heads = config.model_type == "llama" || keys.is_null("num_key_value_heads");
  config.num_kv_heads =
      as_heads ? keys.integer_or("num_key_value_heads", config.num_heads) : keys.integer("num_key_value_heads");
  if (config.num_heads % config.num_kv_heads != 0) {
    keys.refuse("num_key_value_heads", fmt::format("must divide num_attention_heads = {}", config.num_heads));
  }
  if (keys.has("head_dim")) {
    config.head_dim = keys.integer("head_dim");
  } else if (config.model_type == "qwen3") {
    if (keys.is_null("head_dim")) keys.refuse("head_dim", "must be an integer for qwen3");
    config.head_dim = 128;
  } else {
    if (config.hidden_size % config.num_heads != 0) {
      keys.refuse("head_dim", fmt::format("is needed where num_attention_heads = {} does not divide hidden_size = {}",
                                          config.num_heads, config.hidden_size));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.head_dim % 2 != 0)
    keys.refuse("head_dim", fmt::format("{} is odd, rotary embedding needs pairs", config.head_dim));
}

std::int64_t default_max_positions(const std::string& model_type) {
  if (model_type == "llama") return 2048;
  return model_type == "mistral" ? 131072 : 32768;
}

void read_biases(const Keys& keys, DecoderConfig& config) {
  const bool attention_bias = keys.boolean_or("attention_bias", false), mlp_bias = keys.boolean_or("mlp_bias", false);
  const bool knows_attention_bias = config.model_type == "llama" || config.model_type == "qwen3";
  if (attention_bias && !knows_attention_bias) keys.refuse("attention_bias", "unknown for " + config.model_type);
  if (mlp_bias && config.model_type != "llama") keys.refuse("mlp_bias", "unknown for " + config.model_type);
  config.qkv_bias = attention_bias || config.model_type == "qwen2";
  config.attention_out_bias = attention_bias;
  config.mlp_bias = mlp_bias;
  config.qk_norm = config.model_type == "qwen3";
}

}  // namespace

DecoderConfig parse_decoder_config(std::string_view text, const std::string& what) {
  const json object = parse_strict_json(text, what, ErrorKind::kUsage);
  require(object.is_object(), ErrorKind::kUsage, "{}: must hold a JSON object, not {}", what, object.type_name());
  const Keys keys(object, what);

  DecoderConfig config;
  config.model_type = keys.text("model_type");
  const auto family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                   [&](const Family& known) { return known.model_type == config.model_type; });
  if (family == kFamilies.end()) keys.refuse("model_type", "not supported; llama, mistral, qwen2 and qwen3 are");
  check_architecture(keys, *family);
  check_features(keys);
  read_sizes(keys, config);
  config.max_position_embeddings = keys.integer_or("max_position_embeddings", default_max_positions(config.model_type));
  check_sliding_window(keys, config);
  config.norm_eps = static_cast<float>(keys.positive_or("rms_norm_eps", 1e-6));
  if (!(config.norm_eps > 0.0f && config.norm_eps < 1.0f)) keys.refuse("rms_norm_eps", "must lie in (0, 1)");
  read_rope(keys, config);
  check_original_positions(keys, config);
  config.tie_word_embeddings = keys.boolean_or("tie_word_embeddings", false);
  read_biases(keys, config);
  config.validate();
  return config;
}

std::vector<std::string> unread_config_keys(std::string_view text, const std::string& what) {
  constexpr std::array<std::string_view, 43> kKnown = {
      // read or checked
      "model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
      "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
      "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias",
      "layer_types", "use_sliding_window", "sliding_window", "max_window_layers", "is_causal", "bos_token_id",
      "eos_token_id", "pad_token_id",
      // without effect on what the model computes
      "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "initializer_range",
      "pretraining_tp", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward",
      "tie_last_hidden_states", "id2label", "label2id", "num_labels", "problem_type",
      "original_max_position_embeddings"};
  const json object = parse_strict_json(text, what, ErrorKind::kUsage);
  std::vector<std::string> unread;
  for (const auto& [key, value] : object.items()) {
    const std::string& name = key;
    if (!is_off(value) && std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end()) unread.push_back(name);
  }
  return unread;
}

namespace {

/// How many ids the folder's tokenizer has, or all rows.
std::int64_t tokenizer_vocab_size(const std::filesystem::path& folder, std::int64_t rows) {
  const std::int64_t largest = largest_token_id(folder);
  require(largest < rows, ErrorKind::kUsage,
          "{}: the tokenizer has id {}, but config.json only vocab_size = {} rows; they do not belong together (or say "
          "model.vocab_size = {}, --vocab-size {}, where ids beyond never occur)",
          folder.string(), largest, rows, rows, rows);
  return largest < 0 ? rows : largest + 1;
}

}  // namespace

DecoderConfig read_decoder_config(const std::filesystem::path& folder, std::int64_t vocab_size) {
  const std::filesystem::path path = folder / "config.json";
  require(std::filesystem::exists(path), ErrorKind::kUsage,
          "{}: there is no such file; name a Hugging Face model folder (model.path, --model)", path.string());
  DecoderConfig config = parse_decoder_config(read_text_file(path, ErrorKind::kUsage), path.string());
  const std::int64_t rows = config.vocab_size;
  require(
      0 <= vocab_size && vocab_size <= rows, ErrorKind::kUsage,
      "model.vocab_size (--vocab-size) = {}: {} has vocab_size = {} rows; must lie in [1, {}], or be 0 for what the "
      "tokenizer has",
      vocab_size, path.string(), rows, rows);
  config.vocab_size = vocab_size > 0 ? vocab_size : tokenizer_vocab_size(folder, rows);
  config.padding_rows = rows - config.vocab_size;
  return config;
}

}  // namespace reprise
