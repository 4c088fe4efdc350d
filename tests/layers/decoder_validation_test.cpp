#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "layers/decoder_config.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/make_model_folder.hpp"

namespace reprise {
namespace {

TEST(DecoderConfigValidation, NamesKeyAndValue) {
  EXPECT_NO_THROW(tiny_decoder_config().validate());
  const auto refused = [](const std::vector<std::string>& parts, const std::function<void(DecoderConfig&)>& change) {
    DecoderConfig config = tiny_decoder_config();
    change(config);
    expect_error(ErrorKind::kUsage, parts, [&] { config.validate(); });
  };
  refused({"model_type = \"gpt2\"", "qwen3"}, [](DecoderConfig& c) { c.model_type = "gpt2"; });
  refused({"vocab_size = 0"}, [](DecoderConfig& c) { c.vocab_size = 0; });
  refused({"hidden_size = -1"}, [](DecoderConfig& c) { c.hidden_size = -1; });
  refused({"intermediate_size = 0"}, [](DecoderConfig& c) { c.ffn_hidden_size = 0; });
  refused({"num_hidden_layers = 0"}, [](DecoderConfig& c) { c.num_layers = 0; });
  refused({"num_attention_heads = 0"}, [](DecoderConfig& c) { c.num_heads = 0; });
  refused({"num_key_value_heads = 3", "num_attention_heads = 4"}, [](DecoderConfig& c) { c.num_kv_heads = 3; });
  refused({"head_dim = 7", "odd"}, [](DecoderConfig& c) { c.head_dim = 7; });
  refused({"rms_norm_eps = 0"}, [](DecoderConfig& c) { c.norm_eps = 0.0f; });
  refused({"max_position_embeddings = 0"}, [](DecoderConfig& c) { c.max_position_embeddings = 0; });
  refused({"rope_theta = -1"}, [](DecoderConfig& c) { c.rope_theta = -1.0; });
  refused({"rope_theta = nan"}, [](DecoderConfig& c) { c.rope_theta = std::nan(""); });
  refused({"rope_scaling.factor = 0.5"}, [](DecoderConfig& c) { c.rope_scaling.factor = 0.5; });
  refused({"rope_scaling.high_freq_factor = 1", "low_freq_factor = 1"},
          [](DecoderConfig& c) { c.rope_scaling.high_freq_factor = 1.0; });
  refused({"rope_scaling.original_max_position_embeddings = 0"},
          [](DecoderConfig& c) { c.rope_scaling.original_max_position_embeddings = 0; });
}

}  // namespace
}  // namespace reprise
