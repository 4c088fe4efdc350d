#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"
#include "tests/support/mpi_test_main.hpp"

namespace reprise {
namespace {

/// This rank's rows and blocks against the whole ones of the oracle.
void expect_own_part(RankModel<float>& rank, const Table& hidden, const ModelResult& want) {
  const bool is_cut = rank.context.sequence_parallel && rank.groups.tp_size() > 1;
  const std::int64_t first =
      is_cut ? even_shard(want.hidden.rows, rank.groups.tp_size(), rank.groups.tp_rank()).begin : 0;
  const auto near = [](double got, double expected, const std::string& what) {
    EXPECT_NEAR(got, expected, 2e-4 * (1.0 + std::abs(expected))) << what;
  };
  for (std::int64_t r = 0; r < hidden.rows; ++r) {
    for (std::int64_t c = 0; c < hidden.cols; ++c) near(hidden(r, c), want.hidden(first + r, c), "hidden");
  }
  for (std::int64_t i = 0; i < rank.parameters.count(); ++i) {
    const ParameterSpec& spec = rank.parameters.spec(i);
    if (spec.sum_over_tp) rank.groups.tp->all_reduce(rank.stream, rank.parameters.gradient(i).flat());
    const Table gradient = table_of(rank.stream, rank.parameters.gradient(i));
    for (std::int64_t r = 0; r < spec.rows(); ++r) {
      for (std::int64_t c = 0; c < spec.cols(); ++c) {
        near(gradient(r, c), want.gradients.at(spec.name)(spec.row_begin + r, spec.col_begin + c), spec.name);
      }
    }
  }
}

TEST(DecoderModelMpi, ShardingChangesNothing) {
  Communicator& world = mpi_test_world();
  for (const bool qk_norm : {false, true}) {
    DecoderConfig config = tiny_decoder_config();
    config.qk_norm = qk_norm;
    config.model_type = qk_norm ? "qwen3" : "llama";
    config.qkv_bias = config.attention_out_bias = config.mlp_bias = !qk_norm;
    const Tables weights = random_weights(config);  // 2 kv heads: replicated on 4 ranks
    const Documents documents = random_documents(config, {9, 2, 20});
    const Table d_hidden = random_table(documents.size(), config.hidden_size, 0.3, 9);
    const ModelResult want = run_oracle(config, weights, documents, d_hidden);
    for (const bool sequence_parallel : {false, true}) {
      for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kLayer}) {
        RankModel<float> rank(world, config, world.size(), sequence_parallel, weights);
        DecoderModel<float>::ActivationsPtr activations;
        const Table hidden =
            table_of(rank.stream, rank.model.forward(rank.context, documents.batch(), recompute, activations));
        rank.model.backward(rank.context, *activations, rank.local_rows(d_hidden));
        expect_own_part(rank, hidden, want);
      }
    }
  }
}

}  // namespace
}  // namespace reprise
