#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"
#include "tests/support/expect_error.hpp"

namespace reprise {
namespace {

DecoderConfig config_of(const std::string& family) {
  DecoderConfig config = tiny_decoder_config();
  config.model_type = family;
  config.qkv_bias = family == "qwen2";
  config.qk_norm = family == "qwen3";
  return config;
}

/// Feeds the documents piece by piece: pieces[step][document] tokens at a time.
template <class T>
Table decode_in_pieces(RankModel<T>& rank, const Documents& documents,
                       const std::vector<std::vector<std::int64_t>>& pieces) {
  const auto count = static_cast<std::int64_t>(documents.offsets.size()) - 1;
  const auto cache = rank.model.make_cache(count, 40);
  Table hidden(documents.size(), rank.model.config().hidden_size);
  std::vector<std::int64_t> done(static_cast<std::size_t>(count), 0);
  for (const std::vector<std::int64_t>& piece : pieces) {
    Documents fresh{{}, {0}};
    std::vector<std::int64_t> rows;
    for (std::size_t d = 0; d < piece.size(); ++d) {
      for (std::int64_t t = 0; t < piece[d]; ++t) {
        rows.push_back(documents.offsets[d] + done[d]++);
        fresh.tokens.push_back(documents.tokens[static_cast<std::size_t>(rows.back())]);
      }
      fresh.offsets.push_back(fresh.size());
    }
    rank.arena.reset();
    const MatrixView<T> output = rank.model.decode(rank.context, *cache, fresh.batch());
    EXPECT_EQ(output.rows, fresh.size());
    const Table piece_rows = table_of(rank.stream, output);
    for (std::int64_t r = 0; r < output.rows; ++r) {
      for (std::int64_t c = 0; c < output.cols; ++c) hidden(rows[static_cast<std::size_t>(r)], c) = piece_rows(r, c);
    }
  }
  return hidden;
}

TEST(DecoderCache, PieceByPieceEqualsForward) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    const DecoderConfig config = config_of(family);
    const Tables weights = random_weights(config);
    const Documents documents = random_documents(config, {12, 7, 40});
    const Table want = DecoderOracle(config, weights).forward(documents.tokens, documents.offsets);
    for (const int tp : {1, 2, 4}) {
      SCOPED_TRACE(testing::Message() << family << " tp " << tp);
      run_device_ranks(tp, [&](Communicator& world) {
        RankModel<float> rank(world, config, tp, false, weights);
        const Table got =
            decode_in_pieces(rank, documents, {{10, 3, 37}, {1, 1, 1}, {0, 1, 0}, {1, 0, 1}, {0, 0, 0}, {0, 2, 1}});
        EXPECT_LT(relative_difference(got, want), 1e-4);
      });
    }
  }
}

TEST(DecoderCache, BFloat16) {
  const DecoderConfig config = config_of("llama");
  const Tables weights = random_weights(config);
  const Documents documents = random_documents(config, {9, 4});
  run_device_ranks(2, [&](Communicator& world) {
    RankModel<BFloat16> rank(world, config, 2, false, weights);
    DecoderModel<BFloat16>::ActivationsPtr activations;
    const Table want =
        table_of(rank.stream, rank.model.forward(rank.context, documents.batch(), Recompute::kNone, activations));
    EXPECT_LT(relative_difference(decode_in_pieces(rank, documents, {{6, 1}, {1, 1}, {2, 2}}), want), 0.1);
  });
}

TEST(DecoderCache, ADocumentThatOutgrowsItIsRefused) {
  const DecoderConfig config = config_of("llama");
  run_device_ranks(1, [&](Communicator& world) {
    RankModel<float> rank(world, config, 1, false, {});
    rank.model.initialize(1);
    const auto cache = rank.model.make_cache(2, 5);
    const Documents fits = random_documents(config, {5, 2}), more = random_documents(config, {1, 1});
    (void)rank.model.decode(rank.context, *cache, fits.batch());
    expect_error(ErrorKind::kUsage, {"document 0", "6 tokens", "5"},
                 [&] { (void)rank.model.decode(rank.context, *cache, more.batch()); });
    // The refusal has changed nothing: the second document goes on.
    const Documents second{{more.tokens[1]}, {0, 0, 1}};
    EXPECT_EQ(rank.model.decode(rank.context, *cache, second.batch()).rows, 1);
  });
}

}  // namespace
}  // namespace reprise
