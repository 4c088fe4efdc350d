#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "launcher/run_config.hpp"
#include "tests/support/make_dataset.hpp"
#include "tests/support/make_model_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {

/// Random documents with masks: a prompt, then tokens that are trained on.
struct RandomDocuments {
  std::vector<std::vector<std::int64_t>> tokens;
  DatasetOptions options;
};

struct RandomDocumentsOptions {
  std::int64_t count = 8;
  std::int64_t shortest = 3, longest = 12;
  std::int64_t vocab_size = 96;
  std::uint64_t seed = 1;
  bool weights = false;
};

inline RandomDocuments random_documents(const RandomDocumentsOptions& options) {
  std::mt19937_64 generator(options.seed);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(high - low + 1));
  };
  RandomDocuments documents;
  for (std::int64_t d = 0; d < options.count; ++d) {
    const auto length = static_cast<std::size_t>(draw(options.shortest, options.longest));
    const auto prompt = static_cast<std::size_t>(draw(1, static_cast<std::int64_t>(length) - 1));
    std::vector<std::int64_t> tokens(length);
    std::vector<std::uint8_t> mask(length);
    std::vector<float> weights(length);
    for (std::size_t i = 0; i < length; ++i) {
      tokens[i] = draw(4, options.vocab_size - 1);
      mask[i] = i >= prompt ? 1 : 0;
      weights[i] = 0.25f * static_cast<float>(draw(1, 8));
    }
    documents.tokens.push_back(tokens);
    documents.options.masks.push_back(mask);
    if (options.weights) documents.options.weights.push_back(weights);
  }
  return documents;
}

/// A folder with a tiny model (`model`), training data (`data`) and held-out data (`held_out`), and a run file for
/// them: full cross-entropy without a store.
struct RunFixture {
  TemporaryFolder folder;
  DecoderConfig model = tiny_decoder_config();
  RandomDocuments documents;
  RunConfig config;

  explicit RunFixture(const RandomDocumentsOptions& options = {}, const ModelFolderOptions& model_options = {})
      : documents(random_documents(options)) {
    make_model_folder(folder / "model", model, model_options);
    make_dataset(folder / "data", documents.tokens, documents.options);
    RandomDocumentsOptions held_out;
    held_out.count = 5;
    held_out.seed = options.seed + 1000;
    const RandomDocuments other = random_documents(held_out);
    make_dataset(folder / "held_out", other.tokens, other.options);

    config.model.path = folder / "model";
    config.data.train = {folder / "data"};
    config.data.sequence_length = 32;
    config.replay.store = "";
    config.replay.normalization = "full";
    config.optimizer.name = "adamw";
    config.optimizer.lr = 1e-2;
    config.train.steps = 4;
    config.train.global_batch = 8;
    config.train.micro_batch = 2;
    config.run.folder = folder / "run";
  }
};

}  // namespace reprise
