#include <gtest/gtest.h>

#include "layers/decoder_layer.hpp"
#include "tests/layers/decoder_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

DecoderConfig config_with(std::int64_t heads, std::int64_t kv_heads, bool qk_norm = false) {
  DecoderConfig config = tiny_decoder_config();
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = 4;
  config.qk_norm = qk_norm;
  config.qkv_bias = config.attention_out_bias = config.mlp_bias = !qk_norm;
  if (qk_norm) config.model_type = "qwen3";
  return config;
}

struct Traffic {
  std::int64_t all_reduces = 0, all_gathers = 0, reduce_scatters = 0, bytes = 0;
  friend bool operator==(const Traffic&, const Traffic&) = default;
};

Traffic traffic_of(const Communicator& group) {
  Traffic t{group.count(Collective::kAllReduce).calls, group.count(Collective::kAllGather).calls,
            group.count(Collective::kReduceScatter).calls, 0};
  for (std::size_t verb = 0; verb < kNumCollectives; ++verb)
    t.bytes += group.count(static_cast<Collective>(verb)).bytes;
  return t;
}

/// What forward and backward ask of the tensor-parallel group.
std::pair<Traffic, Traffic> measure(const DecoderConfig& config, int tp, bool sequence_parallel, Recompute recompute,
                                    std::int64_t tokens) {
  std::pair<Traffic, Traffic> result;
  const Documents documents = random_documents(config, {tokens});
  const Table d_hidden = random_table(tokens, config.hidden_size, 1.0, 9);
  run_device_ranks(tp, [&](Communicator& world) {
    RankModel<float> rank(world, config, tp, sequence_parallel, {});
    rank.model.initialize(1);
    rank.groups.tp->reset_counts();
    DecoderModel<float>::ActivationsPtr activations;
    (void)rank.model.forward(rank.context, documents.batch(), recompute, activations);
    const Traffic forward = traffic_of(*rank.groups.tp);
    rank.groups.tp->reset_counts();
    rank.model.backward(rank.context, *activations, rank.local_rows(d_hidden));
    if (world.rank() == 0) result = {forward, traffic_of(*rank.groups.tp)};
  });
  return result;
}

TEST(DecoderParallelism, CollectivesPerLayerAreAsDeclared) {
  const DecoderConfig config = config_with(8, 2);
  const std::int64_t layers = config.num_layers, tokens = 24, tp = 4;
  const std::int64_t payload = tokens * config.hidden_size * 4 * (tp - 1) / tp;  // bytes of one all-gather
  const auto plain = measure(config, 4, false, Recompute::kNone, tokens);
  EXPECT_EQ(plain.first, (Traffic{2 * layers + 1, 0, 0, (2 * layers + 1) * 2 * payload}));
  EXPECT_EQ(plain.second, (Traffic{2 * layers, 0, 0, 2 * layers * 2 * payload}));
  const auto sharded = measure(config, 4, true, Recompute::kNone, tokens);
  EXPECT_EQ(sharded.first, (Traffic{0, 2 * layers, 2 * layers + 1, (4 * layers + 1) * payload}));
  EXPECT_EQ(sharded.second, (Traffic{0, 2 * layers + 1, 2 * layers, (4 * layers + 1) * payload}));
  // Recomputation repeats a layer up to its MLP's activation: one all-reduce, or two gathers and a scatter.
  EXPECT_EQ(measure(config, 4, false, Recompute::kLayer, tokens).second.all_reduces, 3 * layers);
  const Traffic again = measure(config, 4, true, Recompute::kLayer, tokens).second;
  EXPECT_EQ(again.all_gathers, 4 * layers + 1);
  EXPECT_EQ(again.reduce_scatters, 3 * layers);
  // Selective recomputation has no sums over ranks, and gathers the outputs of both norms again.
  EXPECT_EQ(measure(config, 4, false, Recompute::kSelective, tokens), plain);
  const auto selective = measure(config, 4, true, Recompute::kSelective, tokens);
  EXPECT_EQ(selective.first, sharded.first);
  EXPECT_EQ(selective.second, (Traffic{0, 4 * layers + 1, 2 * layers, (6 * layers + 1) * payload}));
  EXPECT_EQ(measure(config, 1, true, Recompute::kNone, tokens), std::pair(Traffic{}, Traffic{}));
}

TEST(DecoderParallelism, EveryElementIsCountedOnce) {
  for (const bool qk_norm : {false, true}) {
    for (const std::int64_t kv_heads : {1, 2, 24}) {
      const DecoderConfig config = config_with(24, kv_heads, qk_norm);
      for (const int tp : {1, 2, 4, 8}) {
        for (const bool sequence_parallel : {false, true}) {
          std::map<std::string, std::int64_t> counted, whole;
          std::mutex mutex;
          run_device_ranks(tp, [&](Communicator& world) {
            const RankModel<float> rank(world, config, tp, sequence_parallel, {});
            const std::lock_guard lock(mutex);
            for (const ParameterSpec& spec : rank.parameters.specs()) {
              whole[spec.name] = spec.global_size();
              counted[spec.name] += spec.counted ? spec.size() : 0;
              EXPECT_EQ(spec.decay, !spec.is_vector) << spec.name;
              // Summed over tp: copies of the whole tensor whose gradients are partial.
              const bool is_head_norm = spec.name.ends_with("q_norm.weight") || spec.name.ends_with("k_norm.weight");
              const bool is_replicated =
                  spec.is_vector && spec.size() == spec.global_size() && !spec.name.ends_with("_proj.bias");
              const bool is_output_bias = spec.name.ends_with("o_proj.bias") || spec.name.ends_with("down_proj.bias");
              EXPECT_EQ(spec.sum_over_tp,
                        tp > 1 && (is_head_norm || (sequence_parallel && (is_replicated || is_output_bias))))
                  << spec.name;
            }
          });
          EXPECT_EQ(counted, whole) << "tp " << tp << " kv heads " << kv_heads;
          EXPECT_EQ(whole.size(), model_tensors(config).size());
        }
      }
    }
  }
}

TEST(DecoderParallelism, NamesAndShapesAreThoseOfHuggingFace) {
  for (const bool qk_norm : {false, true}) {
    const DecoderConfig config = config_with(8, 2, qk_norm);
    run_device_ranks(1, [&](Communicator& world) {
      const RankModel<float> rank(world, config, 1, false, {});
      for (const ModelTensor& tensor : model_tensors(config)) {
        const std::int64_t index = rank.parameters.find(tensor.name);
        ASSERT_GE(index, 0) << tensor.name;
        const ParameterSpec& spec = rank.parameters.spec(index);
        EXPECT_EQ(spec.rows(), tensor.rows) << tensor.name;
        EXPECT_EQ(spec.cols(), tensor.cols) << tensor.name;
        EXPECT_EQ(spec.is_vector, tensor.is_vector) << tensor.name;
        const std::string layer = tensor.name.find("embed") != std::string::npos     ? "embedding"
                                  : tensor.name.find("lm_head") != std::string::npos ? "head"
                                  : tensor.name.starts_with("model.norm")
                                      ? "norm"
                                      : "layers." + tensor.name.substr(13, tensor.name.find('.', 13) - 13);
        EXPECT_EQ(spec.layer, layer) << tensor.name;
      }
    });
  }
}

TEST(DecoderParallelism, HeadsThatDoNotDivideAreRefused) {
  const auto refused = [](const DecoderConfig& config, int tp, const std::vector<std::string>& parts) {
    expect_error(ErrorKind::kUsage, parts, [&] { (void)HeadPartition::make(config, tp, 0); });
  };
  refused(config_with(24, 2), 3, {"parallel.tensor = 3", "num_key_value_heads = 2", "legal: 1, 2, 4, 6, 8"});
  refused(config_with(6, 6), 4, {"parallel.tensor = 4", "num_attention_heads = 6", "legal: 1, 2, 3, 6"});
  DecoderConfig odd = config_with(8, 8);
  odd.ffn_hidden_size = 50;
  refused(odd, 4, {"intermediate_size = 50", "legal: 1, 2"});
  // Every rank of a group says the same, before any communication.
  expect_error(ErrorKind::kUsage, {"parallel.tensor = 3"}, [&] {
    run_device_ranks(
        3, [&](Communicator& world) { const RankModel<float> rank(world, config_with(24, 2), 3, false, {}); });
  });
}

TEST(DecoderParallelism, ReplicatedKeyHeadsAreThoseThatTheirQueriesRead) {
  const DecoderConfig config = config_with(24, 2);
  for (int rank = 0; rank < 8; ++rank) {
    const HeadPartition p = HeadPartition::make(config, 8, rank);
    EXPECT_EQ(p.heads, (Range{rank * 3, rank * 3 + 3}));
    EXPECT_EQ(p.kv_heads, (Range{rank / 4, rank / 4 + 1}));
    EXPECT_EQ(p.kv_replicas, 4);
    EXPECT_EQ(p.counts_kv_heads, rank % 4 == 0);
  }
}

TEST(DecoderParallelism, UnknownTokensAreRefusedOnEveryRank) {
  const DecoderConfig config = config_with(8, 2);
  for (const std::int32_t id : {-1, 96}) {
    expect_error(ErrorKind::kData, {std::to_string(id), "position 2", "[0, 96)"}, [&] {
      run_device_ranks(2, [&](Communicator& world) {
        RankModel<float> rank(world, config, 2, false, {});
        const Documents documents{{3, 4, id, 5}, {0, 4}};
        DecoderModel<float>::ActivationsPtr activations;
        (void)rank.model.forward(rank.context, documents.batch(), Recompute::kNone, activations);
      });
    });
  }
}

TEST(DecoderParallelism, EveryShardingInitialisesTheSameModel) {
  DecoderConfig config = config_with(24, 2);
  config.hidden_size = 64;
  const auto initial = [&](int tp) {
    Tables values;
    std::mutex mutex;
    run_device_ranks(tp, [&](Communicator& world) {
      RankModel<float> rank(world, config, tp, true, {});
      rank.model.initialize(7);
      const std::lock_guard lock(mutex);
      for (std::int64_t i = 0; i < rank.parameters.count(); ++i) {
        const ParameterSpec& spec = rank.parameters.spec(i);
        Table& whole = values[spec.name];
        if (whole.rows == 0) whole = Table(spec.global_rows, spec.global_cols);
        const Table block = table_of(rank.stream, rank.parameters.value(i));
        for (std::int64_t r = 0; r < spec.rows(); ++r) {
          for (std::int64_t c = 0; c < spec.cols(); ++c) {
            whole(spec.row_begin + r, spec.col_begin + c) = block(r, c);
          }
        }
      }
    });
    return values;
  };
  const Tables one = initial(1);
  for (const int tp : {2, 4, 8}) {
    for (const auto& [name, table] : initial(tp)) EXPECT_EQ(table.data, one.at(name).data) << name;
  }
  const auto deviation = [&](const std::string& name) {
    double squares = 0.0;
    for (const double x : one.at(name).data) squares += x * x;
    return std::sqrt(squares / static_cast<double>(one.at(name).data.size()));
  };
  EXPECT_NEAR(deviation("model.embed_tokens.weight"), 0.02, 0.001);
  EXPECT_NEAR(deviation("model.layers.1.mlp.down_proj.weight"), 0.02 / std::sqrt(4.0), 0.001);
  EXPECT_EQ(one.at("model.norm.weight")(0, 0), 1.0);
  EXPECT_EQ(one.at("model.layers.0.self_attn.q_proj.bias")(0, 0), 0.0);
  EXPECT_NE(one.at("model.layers.0.mlp.gate_proj.weight")(0, 0), one.at("model.layers.0.mlp.up_proj.weight")(0, 0));
}

TEST(DecoderParallelism, TiedModelsShareTheHead) {
  DecoderConfig config = config_with(8, 2);
  config.tie_word_embeddings = true;
  run_device_ranks(2, [&](Communicator& world) {
    RankModel<float> rank(world, config, 2, false, {});
    EXPECT_EQ(rank.parameters.find("lm_head.weight"), -1);
    EXPECT_EQ(rank.model.head_weight().data, rank.parameters.value(0).data);
    EXPECT_EQ(rank.model.head_gradient().data, rank.parameters.gradient(0).data);
    EXPECT_EQ(rank.model.head_weight().rows, rank.model.vocab().rows(world.rank()).size());
  });
}

}  // namespace
}  // namespace reprise
