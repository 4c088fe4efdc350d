#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

/// <gradient, direction> against a central difference of sum(hidden * d_hidden), one random direction per parameter.
TEST(DecoderGradient, GradientsAreThoseOfFiniteDifferences) {
  for (const char* family : {"llama", "qwen3"}) {
    DecoderConfig config = family_config(family);
    config.num_layers = 1;
    const Tables weights = random_weights(config);
    const Documents documents = random_documents(config, {9, 4});
    const Table d_hidden = random_table(documents.size(), config.hidden_size, 1.0, 9);
    const ModelResult result = run_model<float>(config, weights, documents, d_hidden, {.tp = 2});
    const auto loss_at = [&](const std::string& name, const Table& direction, double step) {
      Tables moved = weights;
      for (std::size_t i = 0; i < direction.data.size(); ++i) moved[name].data[i] += step * direction.data[i];
      const Table hidden = run_model<float>(config, moved, documents, d_hidden, {.tp = 2}).hidden;
      double loss = 0.0;
      for (std::size_t i = 0; i < hidden.data.size(); ++i) loss += hidden.data[i] * d_hidden.data[i];
      return loss;
    };
    std::uint64_t seed = 20;
    for (const auto& [name, gradient] : result.gradients) {
      const Table direction = random_table(gradient.rows, gradient.cols, 1.0, ++seed);
      constexpr double kStep = 2e-3;
      const double slope = (loss_at(name, direction, kStep) - loss_at(name, direction, -kStep)) / (2.0 * kStep);
      double expected = 0.0, length = 0.0;
      for (std::size_t i = 0; i < gradient.data.size(); ++i) {
        expected += gradient.data[i] * direction.data[i];
        length += gradient.data[i] * gradient.data[i];
      }
      EXPECT_NEAR(slope, expected, 0.01 * std::sqrt(length) + 0.01) << family << " " << name;
    }
  }
}

}  // namespace
}  // namespace reprise
