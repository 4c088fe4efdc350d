#include "layers/decoder_model.hpp"

#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

DecoderConfig config_of(const std::string& family) {
  DecoderConfig config = tiny_decoder_config();
  config.model_type = family;
  config.qkv_bias = family == "qwen2";
  config.qk_norm = family == "qwen3";
  return config;
}

TEST(DecoderModel, EqualsTheOracle) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(family);
    const DecoderConfig config = config_of(family);
    const Tables weights = random_weights(config);
    const Documents documents = random_documents(config, {11, 1, 5, 70});
    const Table d_hidden = random_table(documents.size(), config.hidden_size, 1.0, 9);
    expect_close(run_model<float>(config, weights, documents, d_hidden),
                 run_oracle(config, weights, documents, d_hidden), 1e-4);
  }
}

/// 24 heads of 4, so that every tensor size of the tests divides them.
DecoderConfig wide_config(const std::string& family, std::int64_t kv_heads) {
  DecoderConfig config = config_of(family);
  config.num_heads = 24;
  config.num_kv_heads = kv_heads;
  config.head_dim = 4;
  return config;
}

TEST(DecoderModel, ShardingChangesNothing) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    for (const std::int64_t kv_heads : {1, 2, 24}) {
      const DecoderConfig config = wide_config(family, kv_heads);
      const Tables weights = random_weights(config);
      const Documents documents = random_documents(config, {9, 2, 26});
      const Table d_hidden = random_table(documents.size(), config.hidden_size, 1.0, 9);
      const ModelResult want = run_oracle(config, weights, documents, d_hidden);
      for (const int tp : {1, 2, 3, 4, 8}) {
        for (const bool sequence_parallel : {false, true}) {
          if (kv_heads == 2 && tp == 3) continue;  // refused, see RefusesHeadsThatDoNotDivide
          SCOPED_TRACE(fmt::format("{} kv_heads {} tp {} sp {}", family, kv_heads, tp, sequence_parallel));
          expect_close(run_model<float>(config, weights, documents, d_hidden, {tp, sequence_parallel}), want, 1e-4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace reprise
