#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "launcher/hugging_face.hpp"
#include "launcher/tokenizer_info.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/make_model_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

using Json = nlohmann::ordered_json;

DecoderConfig config_of_family(const std::string& model_type) {
  DecoderConfig config = tiny_decoder_config();
  config.model_type = model_type;
  config.qkv_bias = model_type == "qwen2";
  config.qk_norm = model_type == "qwen3";
  config.tie_word_embeddings = model_type == "qwen3";
  config.norm_eps = 1e-6f;
  config.rope_theta = 1e6;
  if (model_type == "llama") config.rope_scaling = {8.0, 1.0, 4.0, 8192};
  return config;
}

void expect_equal(const DecoderConfig& got, const DecoderConfig& want) {
  EXPECT_EQ(got.model_type, want.model_type);
  EXPECT_EQ(got.vocab_size, want.vocab_size);
  EXPECT_EQ(got.hidden_size, want.hidden_size);
  EXPECT_EQ(got.ffn_hidden_size, want.ffn_hidden_size);
  EXPECT_EQ(got.num_layers, want.num_layers);
  EXPECT_EQ(got.num_heads, want.num_heads);
  EXPECT_EQ(got.num_kv_heads, want.num_kv_heads);
  EXPECT_EQ(got.head_dim, want.head_dim);
  EXPECT_EQ(got.norm_eps, want.norm_eps);
  EXPECT_EQ(got.rope_theta, want.rope_theta);
  EXPECT_EQ(got.rope_scaling.factor, want.rope_scaling.factor);
  EXPECT_EQ(got.rope_scaling.low_freq_factor, want.rope_scaling.low_freq_factor);
  EXPECT_EQ(got.rope_scaling.high_freq_factor, want.rope_scaling.high_freq_factor);
  EXPECT_EQ(got.rope_scaling.original_max_position_embeddings, want.rope_scaling.original_max_position_embeddings);
  EXPECT_EQ(got.max_position_embeddings, want.max_position_embeddings);
  EXPECT_EQ(got.tie_word_embeddings, want.tie_word_embeddings);
  EXPECT_EQ(got.qkv_bias, want.qkv_bias);
  EXPECT_EQ(got.attention_out_bias, want.attention_out_bias);
  EXPECT_EQ(got.mlp_bias, want.mlp_bias);
  EXPECT_EQ(got.qk_norm, want.qk_norm);
}

TEST(DecoderConfig, EveryFamilyInBothSpellings) {
  for (const char* model_type : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const bool transformers_5 : {false, true}) {
      const DecoderConfig want = config_of_family(model_type);
      ModelFolderOptions options;
      options.transformers_5 = transformers_5;
      expect_equal(parse_decoder_config(model_config_json(want, options).dump(), "config.json"), want);
    }
  }
}

DecoderConfig parse(const Json& json) {
  return parse_decoder_config(json.dump(), "config.json");
}

TEST(DecoderConfig, PublishedLlama3) {  // meta-llama/Llama-3.1-8B, as transformers 4 wrote it
  const DecoderConfig config = parse_decoder_config(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0",
    "use_cache": true, "vocab_size": 128256})",
                                                    "config.json");
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling.factor, 8.0);
  EXPECT_EQ(config.norm_eps, 1e-5f);
}

TEST(DecoderConfig, PublishedQwen3) {  // Qwen/Qwen3-0.6B
  const DecoderConfig config = parse_decoder_config(R"({
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
    "vocab_size": 151936})",
                                                    "config.json");
  EXPECT_EQ(config.num_heads * config.head_dim, 2048);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_TRUE(config.tie_word_embeddings);
}

TEST(DecoderConfig, DefaultsAreThoseOfTransformers) {
  Json json = model_config_json(config_of_family("llama"));
  for (const char* key : {"num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
                          "max_position_embeddings", "tie_word_embeddings", "hidden_act", "architectures"}) {
    json.erase(key);
  }
  const DecoderConfig config = parse(json);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.norm_eps, 1e-6f);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.rope_scaling.factor, 1.0);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_FALSE(config.tie_word_embeddings);
}

TEST(DecoderConfig, BiasesFollowTheFamily) {
  Json llama = model_config_json(config_of_family("llama"));
  llama["attention_bias"] = true;
  llama["mlp_bias"] = true;
  EXPECT_TRUE(parse(llama).qkv_bias && parse(llama).attention_out_bias && parse(llama).mlp_bias);
  EXPECT_TRUE(parse(model_config_json(config_of_family("qwen2"))).qkv_bias);
  EXPECT_FALSE(parse(model_config_json(config_of_family("qwen2"))).attention_out_bias);
}

TEST(DecoderConfig, TheVocabularyIsTheTokenizersUnlessSaidOtherwise) {
  const TemporaryFolder folder;
  DecoderConfig config = tiny_decoder_config();
  config.padding_rows = 32;
  make_model_folder(folder.path(), config);
  const auto expect_sizes = [&](std::int64_t asked, std::int64_t vocab_size) {
    const DecoderConfig read = read_decoder_config(folder.path(), asked);
    EXPECT_EQ(read.vocab_size, vocab_size);
    EXPECT_EQ(read.vocab_rows(), 128);
  };
  expect_sizes(0, 96);
  expect_sizes(50, 50);
  expect_sizes(128, 128);
  for (const std::int64_t wrong : {-1, 129}) {
    expect_error(ErrorKind::kUsage, {"model.vocab_size", std::to_string(wrong), "128"},
                 [&] { (void)read_decoder_config(folder.path(), wrong); });
  }
  write_file_atomically(folder / "tokenizer.json", tokenizer_json(129).dump());
  expect_error(ErrorKind::kUsage, {"tokenizer has id 128", "128 rows", "model.vocab_size = 128"},
               [&] { (void)read_decoder_config(folder.path()); });
  expect_sizes(128, 128);
  std::filesystem::remove(folder / "tokenizer.json");
  expect_sizes(0, 128);
}

TEST(DecoderConfig, KeysThatNobodyReadsAreNamed) {
  Json json = model_config_json(config_of_family("qwen3"));
  EXPECT_TRUE(unread_config_keys(json.dump(), "config.json").empty());
  json["unsloth_fixed"] = true;
  json["another"] = 5;
  json["off"] = nullptr;
  EXPECT_EQ(unread_config_keys(json.dump(), "config.json"), (std::vector<std::string>{"another", "unsloth_fixed"}));
}

TEST(DecoderConfig, AWindowThatNothingReachesIsNoWindow) {
  Json mistral = model_config_json(config_of_family("mistral"));
  mistral["sliding_window"] = 256;  // max_position_embeddings
  EXPECT_EQ(parse(mistral).max_position_embeddings, 256);
  mistral.erase("sliding_window");  // 4096
  EXPECT_EQ(parse(mistral).model_type, "mistral");
  Json qwen = model_config_json(config_of_family("qwen3"));
  qwen["layer_types"] = {"full_attention", "attention"};  // the second is an older name
  EXPECT_EQ(parse(qwen).model_type, "qwen3");
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(parse(qwen).model_type, "qwen3");
  qwen.erase("layer_types");  // from layer max_window_layers = 2 on
  EXPECT_EQ(parse(qwen).model_type, "qwen3");
}

struct Refusal {
  const char* name;
  const char* model_type;
  std::function<void(Json&)> change;
  std::vector<std::string> message;
};

void PrintTo(const Refusal& refusal, std::ostream* out) {
  *out << refusal.name;
}

std::function<void(Json&)> set(const std::string& key, const Json& value) {
  return [key, value](Json& json) { json[key] = value; };
}
std::function<void(Json&)> set_rope(const std::string& key, const Json& value) {
  return [key, value](Json& json) { json["rope_scaling"][key] = value; };
}
std::function<void(Json&)> drop(const std::string& key) {
  return [key](Json& json) { json.erase(key); };
}

class RefusedConfigTest : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedConfigTest, NamesKeyAndValue) {
  Json json = model_config_json(config_of_family(GetParam().model_type));
  GetParam().change(json);
  std::vector<std::string> parts = GetParam().message;
  parts.emplace_back("config.json");
  expect_error(ErrorKind::kUsage, parts, [&] { (void)parse(json); });
}

INSTANTIATE_TEST_SUITE_P(
    All, RefusedConfigTest,
    testing::Values(
        Refusal{"family", "llama", set("model_type", "gemma2"), {"model_type = \"gemma2\"", "qwen3"}},
        Refusal{"no_family", "llama", drop("model_type"), {"model_type = absent"}},
        Refusal{"architecture",
                "llama",
                set("architectures", {"LlamaForSequenceClassification"}),
                {"architectures", "LlamaForCausalLM"}},
        Refusal{"no_vocab", "llama", drop("vocab_size"), {"vocab_size = absent", "needed"}},
        Refusal{"zero_vocab", "llama", set("vocab_size", 0), {"vocab_size = 0"}},
        Refusal{"negative_hidden", "llama", set("hidden_size", -32), {"hidden_size = -32"}},
        Refusal{"huge_layers",
                "llama",
                set("num_hidden_layers", std::uint64_t{1} << 40),
                {"num_hidden_layers = 1099511627776"}},
        Refusal{"above_int64", "llama", set("intermediate_size", 1e30), {"intermediate_size = 1e+30"}},
        Refusal{"string_size", "llama", set("hidden_size", "32"), {"hidden_size = \"32\""}},
        Refusal{"fractional_size", "llama", set("hidden_size", 32.5), {"hidden_size = 32.5"}},
        Refusal{"zero_heads", "llama", set("num_attention_heads", 0), {"num_attention_heads = 0"}},
        Refusal{"kv_heads", "llama", set("num_key_value_heads", 3), {"num_key_value_heads = 3", "4"}},
        Refusal{"kv_heads_absent", "qwen2", drop("num_key_value_heads"), {"num_key_value_heads = absent"}},
        Refusal{"zero_head_dim", "llama", set("head_dim", 0), {"head_dim = 0"}},
        Refusal{"odd_head_dim", "llama", set("head_dim", 7), {"head_dim = 7", "odd"}},
        Refusal{"indivisible_hidden",
                "llama",
                [](Json& json) {
                  json.erase("head_dim");
                  json["hidden_size"] = 34;
                },
                {"head_dim = absent", "hidden_size = 34"}},
        Refusal{"zero_eps", "llama", set("rms_norm_eps", 0), {"rms_norm_eps = 0"}},
        Refusal{"string_eps", "llama", set("rms_norm_eps", "1e-5"), {"rms_norm_eps = \"1e-5\""}},
        Refusal{"large_eps", "llama", set("rms_norm_eps", 2.0), {"rms_norm_eps = 2.0"}},
        Refusal{"negative_theta", "llama", set("rope_theta", -1), {"rope_theta = -1"}},
        Refusal{"tie_string", "llama", set("tie_word_embeddings", "yes"), {"tie_word_embeddings = \"yes\""}},
        Refusal{"activation", "llama", set("hidden_act", "gelu"), {"hidden_act = \"gelu\"", "silu"}},
        Refusal{"quantized", "llama", set("quantization_config", {{"bits", 4}}), {"quantization_config", "bits"}},
        Refusal{"experts", "qwen3", set("num_experts", 8), {"num_experts = 8"}},
        Refusal{"local_experts", "mistral", set("num_local_experts", 8), {"num_local_experts = 8"}},
        Refusal{"moe_size", "qwen3", set("moe_intermediate_size", 768), {"moe_intermediate_size = 768"}},
        Refusal{"router", "llama", set("output_router_logits", true), {"output_router_logits = true"}},
        Refusal{"partial_rotary", "llama", set("partial_rotary_factor", 0.5), {"partial_rotary_factor = 0.5"}},
        Refusal{"softcap", "llama", set("final_logit_softcapping", 30.0), {"final_logit_softcapping = 30.0"}},
        Refusal{"multiplier", "llama", set("embedding_multiplier", 12.0), {"embedding_multiplier = 12.0"}},
        Refusal{"logits_scaling", "llama", set("logits_scaling", 8.0), {"logits_scaling = 8.0"}},
        Refusal{"attention_dropout", "llama", set("attention_dropout", 0.1), {"attention_dropout = 0.1"}},
        Refusal{"custom_code", "llama", set("auto_map", {{"AutoModel", "x.Y"}}), {"auto_map"}},
        Refusal{"encoder_decoder", "llama", set("is_encoder_decoder", true), {"is_encoder_decoder = true"}},
        Refusal{"vision", "llama", set("vision_config", {{"depth", 2}}), {"vision_config"}},
        Refusal{"mistral_window", "mistral", set("sliding_window", 128), {"sliding_window = 128"}},
        Refusal{"mistral_default_window",
                "mistral",
                [](Json& json) {
                  json.erase("sliding_window");
                  json["max_position_embeddings"] = 32768;
                },
                {"sliding_window = absent", "4096"}},
        Refusal{"qwen_window",
                "qwen2",
                [](Json& json) {
                  json["use_sliding_window"] = true;
                  json["sliding_window"] = 128;
                  json["max_window_layers"] = 1;
                },
                {"use_sliding_window = true"}},
        Refusal{"too_few_layer_types", "qwen3", set("layer_types", {"full_attention"}), {"layer_types", "2 layers"}},
        Refusal{"not_causal", "llama", set("is_causal", false), {"is_causal = false"}},
        Refusal{"layers_that_differ",
                "llama",
                set("per_layer_config", {{"1", {{"intermediate_size", 8}}}}),
                {"per_layer_config", "intermediate_size"}},
        Refusal{"original_positions",
                "llama",
                set("original_max_position_embeddings", 4096),
                {"original_max_position_embeddings = 4096"}},
        Refusal{"rope_type_twice", "llama", set_rope("type", "yarn"), {"rope_scaling.type = \"yarn\"", "contradicts"}},
        Refusal{"null_head_dim", "qwen3", set("head_dim", nullptr), {"head_dim = null"}},
        Refusal{"layer_types",
                "qwen3",
                set("layer_types", {"full_attention", "sliding_attention"}),
                {"layer_types", "sliding_attention"}},
        Refusal{"attention_bias", "mistral", set("attention_bias", true), {"attention_bias = true"}},
        Refusal{"mlp_bias", "qwen3", set("mlp_bias", true), {"mlp_bias = true"}},
        Refusal{"rope_yarn",
                "llama",
                set("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}),
                {"rope_scaling.rope_type = \"yarn\"", "llama3"}},
        Refusal{"rope_linear_old_key",
                "llama",
                set("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}),
                {"rope_scaling.type = \"linear\""}},
        Refusal{"rope_dynamic_new_key",
                "qwen3",
                [](Json& json) {
                  json.erase("rope_scaling");
                  json["rope_parameters"] = {{"rope_type", "dynamic"}, {"factor", 2.0}, {"rope_theta", 1e6}};
                },
                {"rope_parameters.rope_type = \"dynamic\""}},
        Refusal{"rope_string", "llama", set("rope_scaling", "llama3"), {"rope_scaling = \"llama3\"", "object"}},
        Refusal{"rope_factor_string", "llama", set_rope("factor", "8"), {"rope_scaling.factor = \"8\""}},
        Refusal{"rope_factor_small", "llama", set_rope("factor", 0.5), {"rope_scaling.factor = 0.5"}},
        Refusal{"rope_factor_absent",
                "llama",
                [](Json& json) { json["rope_scaling"].erase("factor"); },
                {"rope_scaling.factor = absent"}},
        Refusal{"rope_high_below_low",
                "llama",
                set_rope("high_freq_factor", 0.5),
                {"rope_scaling.high_freq_factor = 0.5", "low_freq_factor"}},
        Refusal{"rope_original",
                "llama",
                set_rope("original_max_position_embeddings", -1),
                {"rope_scaling.original_max_position_embeddings = -1"}},
        Refusal{
            "rope_unknown_key", "llama", set_rope("attention_factor", 1.5), {"rope_scaling.attention_factor = 1.5"}},
        Refusal{"rope_partial",
                "llama",
                set_rope("partial_rotary_factor", 0.25),
                {"rope_scaling.partial_rotary_factor = 0.25"}},
        Refusal{
            "rope_theta_twice", "llama", set_rope("rope_theta", 5.0), {"rope_scaling.rope_theta = 5.0", "contradicts"}},
        Refusal{"rope_per_layer_type",
                "qwen3",
                [](Json& json) {
                  json.erase("rope_scaling");
                  json["rope_parameters"] = {{"full_attention", {{"rope_type", "default"}}}};
                },
                {"rope_parameters.full_attention"}}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(DecoderConfig, DamagedTextIsRefused) {
  const auto refused = [](const std::string& text, const std::string& message) {
    expect_error(ErrorKind::kUsage, {"config.json", message}, [&] { (void)parse_decoder_config(text, "config.json"); });
  };
  refused("", "not valid JSON");
  refused("[]", "must hold a JSON object");
  refused(R"({"model_type": "llama", "model_type": "llama"})", "appears twice");
  Json json = model_config_json(config_of_family("llama"));
  std::string text = json.dump();
  const std::string factor = "\"factor\":8.0";
  refused(text.replace(text.find(factor), factor.size(), "\"factor\":NaN"), "not valid JSON");
  const TemporaryFolder folder;
  expect_error(ErrorKind::kUsage, {"config.json", "no such file"}, [&] { (void)read_decoder_config(folder.path()); });
}

TEST(TokenizerInfo, GenerationConfigWinsOverConfig) {
  const TemporaryFolder folder;
  make_model_folder(folder.path(), tiny_decoder_config());
  const TokenizerInfo info = read_tokenizer_info(folder.path());
  EXPECT_EQ(info.eos_ids, (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(info.bos_id, 1);
  EXPECT_EQ(info.pad_id, -1);
  EXPECT_EQ(largest_token_id(folder.path()), 95);
  write_file_atomically(folder / "tokenizer_config.json", R"({"added_tokens_decoder": {"7": {}, "101": {}}})");
  EXPECT_EQ(largest_token_id(folder.path()), 101);  // transformers adds it when it loads the tokenizer
  std::filesystem::remove(folder / "generation_config.json");
  EXPECT_EQ(read_tokenizer_info(folder.path()).eos_ids, (std::vector<std::int32_t>{2}));
  std::filesystem::remove(folder / "tokenizer.json");
  EXPECT_EQ(largest_token_id(folder.path()), -1);
}

TEST(TokenizerInfo, IdsOutOfRangeAreRefused) {
  const TemporaryFolder folder;
  make_model_folder(folder.path(), tiny_decoder_config());
  write_file_atomically(folder / "generation_config.json", R"({"eos_token_id": -1, "pad_token_id": -1})");
  EXPECT_EQ(read_tokenizer_info(folder.path()).pad_id, -1);
  for (const char* value : {"96", "-2", "\"</s>\"", "[2, 96]", "2.0", "{}"}) {
    write_file_atomically(folder / "generation_config.json", std::string(R"({"eos_token_id": )") + value + "}");
    expect_error(ErrorKind::kUsage, {"generation_config.json", "eos_token_id", "[0, 96)"},
                 [&] { (void)read_tokenizer_info(folder.path()); });
  }
}

TEST(TokenizerInfo, FingerprintsFollowTheirFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(tokenizer_fingerprint(folder.path()), "none");
  EXPECT_EQ(template_fingerprint(folder.path()), "none");
  make_model_folder(folder.path(), tiny_decoder_config());
  const std::string tokenizer = tokenizer_fingerprint(folder.path()), chat = template_fingerprint(folder.path());
  EXPECT_EQ(tokenizer.size(), 64u);
  EXPECT_EQ(chat.size(), 64u);
  // The template alone counts, wherever it is kept.
  write_file_atomically(folder / "tokenizer_config.json", R"({"chat_template": "{{ messages }}", "eos_token": "d"})");
  EXPECT_EQ(template_fingerprint(folder.path()), chat);
  write_file_atomically(folder / "tokenizer_config.json", "{}");
  EXPECT_EQ(template_fingerprint(folder.path()), "none");
  write_file_atomically(folder / "chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(template_fingerprint(folder.path()), chat);
  write_file_atomically(folder / "tokenizer.json", "{}");
  EXPECT_NE(tokenizer_fingerprint(folder.path()), tokenizer);
}

}  // namespace
}  // namespace reprise
