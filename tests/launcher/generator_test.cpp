#include "launcher/generator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>

#include "core/gemm.hpp"
#include "core/transfer.hpp"
#include "launcher/model_session.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

using Texts = std::vector<std::vector<std::int32_t>>;

std::vector<Continuation> continue_with(const RunFixture& fixture, int tensor, const std::vector<Prompt>& prompts,
                                        const GeneratorOptions& options) {
  std::vector<Continuation> continuations;
  std::mutex mutex;
  run_ranks(tensor, [&](Communicator& world) {
    Session session(world, tensor, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, true);
    const auto own = generate(session, *model->model, prompts, options);
    const std::lock_guard lock(mutex);
    if (world.rank() == 0) {
      continuations = own;
    }
  });
  return continuations;
}

Texts texts_of(const std::vector<Continuation>& continuations) {
  Texts texts;
  for (const Continuation& continuation : continuations) texts.push_back(continuation.tokens);
  return texts;
}

Texts generate_with(const RunFixture& fixture, int tensor, const std::vector<Prompt>& prompts,
                    const GeneratorOptions& options) {
  return texts_of(continue_with(fixture, tensor, prompts, options));
}

/// The logits of a row of hidden states, on the host.
std::vector<float> logits_of(const Context& context, const LoadedModel<float>& loaded, MatrixView<const float> row) {
  const auto logits = context.arena.matrix<float>(1, loaded.config.vocab_size, "logits");
  gemm<float, float>(context.stream, Transpose::kNo, Transpose::kYes, 1.0f, row, loaded.model->head_weight(), 0.0f,
                     logits);
  return to_host(context.stream, logits.flat());
}

/// Changes the head, wherever it lies.
void change_head(const Session& session, LoadedModel<float>& loaded,
                 const std::function<void(std::vector<float>&)>& change) {
  const auto head = loaded.parameters.value(loaded.parameters.find("lm_head.weight")).flat();
  std::vector<float> values = to_host(session.stream(), head);
  change(values);
  copy_to_device<float>(session.stream(), values, head);
}

/// The arg max of the full forward pass over everything so far, one token after the other.
Texts generate_slowly(const RunFixture& fixture, const std::vector<Prompt>& prompts, const GeneratorOptions& options) {
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto loaded = load_model<float>(session, fixture.config.model.path, true);
  const Context context = session.context();
  Texts texts;
  for (const Prompt& prompt : prompts) {
    std::vector<std::int32_t> tokens = prompt.tokens, text;
    while (static_cast<std::int64_t>(text.size()) < options.max_tokens &&
           static_cast<std::int64_t>(tokens.size()) < fixture.model.max_position_embeddings) {
      const Arena::Scope scope(context.arena);
      const std::vector<std::int64_t> offsets{0, static_cast<std::int64_t>(tokens.size())};
      DecoderModel<float>::ActivationsPtr activations;
      const auto hidden = loaded->model->forward(context, {tokens, offsets}, Recompute::kNone, activations);
      const std::vector<float> logits = logits_of(context, *loaded, hidden.row_range(hidden.rows - 1, 1));
      const auto next = static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (std::find(options.stop_ids.begin(), options.stop_ids.end(), next) != options.stop_ids.end()) break;
      tokens.push_back(next);
      text.push_back(next);
    }
    texts.push_back(text);
  }
  return texts;
}

std::vector<Prompt> some_prompts() {
  return {{10, {5, 9, 30}}, {11, {7}}, {12, {40, 41, 42, 43, 44, 45, 46}}, {13, {90, 2, 8}}};
}

TEST(Generator, GreedyIsTheArgMaxOfTheFullForwardPassForEverySharding) {
  const RunFixture fixture;
  GeneratorOptions options;
  options.max_tokens = 12;
  const Texts expected = generate_slowly(fixture, some_prompts(), options);
  // An end token that some of them come to: those drop out, the others go on.
  options.stop_ids = {expected[0][5]};
  const Texts ended = generate_slowly(fixture, some_prompts(), options);
  ASSERT_LE(ended[0].size(), 5u);
  for (const int tensor : {1, 2, 4})
    EXPECT_EQ(generate_with(fixture, tensor, some_prompts(), options), ended) << tensor;
}

TEST(Generator, TheNextPromptTakesThePlaceOfOneThatEndsAndLongOnesAreReadInPieces) {
  const RunFixture fixture;
  GeneratorOptions options;
  options.max_tokens = 12;
  options.stop_ids = {generate_slowly(fixture, some_prompts(), options)[0][5]};
  std::vector<Prompt> prompts = some_prompts();
  for (std::uint64_t i = 0; i < 9; ++i) {
    std::vector<std::int32_t> tokens;
    for (std::uint64_t t = 0; t < 1 + (5 * i) % 13; ++t)
      tokens.push_back(static_cast<std::int32_t>(4 + (7 * i + t) % 90));
    prompts.push_back({20 + i, tokens});
  }
  const Texts expected = generate_slowly(fixture, prompts, options);
  for (const auto& [batch, prefill_tokens] : {std::pair{1, 1000}, {2, 4}, {5, 1}, {100, 1000}}) {
    options.batch = batch;
    options.prefill_tokens = prefill_tokens;
    std::int64_t finished = 0;
    options.on_finished = [&](std::int64_t count) { finished = count; };
    EXPECT_EQ(generate_with(fixture, 1, prompts, options), expected) << batch << " " << prefill_tokens;
    EXPECT_EQ(finished, std::ssize(prompts));
  }
  options.on_finished = {};
  options.batch = 3;
  EXPECT_EQ(generate_with(fixture, 2, prompts, options), expected);
}

TEST(Generator, SaysWhyATextEndedAndHowProbableItsTokensWere) {
  const RunFixture fixture;
  GeneratorOptions options;
  options.max_tokens = 8;
  options.log_probs = true;
  options.stop_ids = {generate_slowly(fixture, some_prompts(), options)[0][5]};
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto loaded = load_model<float>(session, fixture.config.model.path, true);
  const Context context = session.context();
  bool stopped = false, cut = false;
  for (const double temperature : {0.0, 0.8}) {
    options.sampling.temperature = temperature;
    const auto continuations = continue_with(fixture, 2, some_prompts(), options);
    for (std::size_t i = 0; i < continuations.size(); ++i) {
      const Continuation& text = continuations[i];
      stopped = stopped || text.stop_id >= 0;
      cut = cut || text.stop_id < 0;
      std::vector<std::int32_t> predicted = text.tokens, tokens = some_prompts()[i].tokens;
      if (text.stop_id >= 0) predicted.push_back(text.stop_id);
      EXPECT_TRUE(text.stop_id < 0 || text.stop_id == options.stop_ids[0]);
      ASSERT_EQ(text.log_probs.size(), predicted.size());
      for (std::size_t t = 0; t < predicted.size(); ++t) {
        const Arena::Scope scope(context.arena);
        const std::vector<std::int64_t> offsets{0, std::ssize(tokens)};
        DecoderModel<float>::ActivationsPtr activations;
        const auto hidden = loaded->model->forward(context, {tokens, offsets}, Recompute::kNone, activations);
        const std::vector<float> logits = logits_of(context, *loaded, hidden.row_range(hidden.rows - 1, 1));
        double sum = 0.0;
        for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
        EXPECT_NEAR(text.log_probs[t], logits[static_cast<std::size_t>(predicted[t])] - std::log(sum), 2e-5);
        tokens.push_back(predicted[t]);
      }
    }
  }
  EXPECT_TRUE(stopped && cut);
}

TEST(Generator, StopsAtTheModelsLastPosition) {
  RunFixture fixture;
  fixture.model.max_position_embeddings = 8;
  make_model_folder(fixture.folder / "model", fixture.model);
  GeneratorOptions options;
  options.max_tokens = 100;
  const Texts texts = generate_with(fixture, 1, some_prompts(), options);
  EXPECT_EQ(texts, generate_slowly(fixture, some_prompts(), options));
  EXPECT_EQ(texts[2].size(), 1u);
  EXPECT_EQ(texts[1].size(), 7u);

  expect_error(ErrorKind::kData, {"prompt 20", "8 tokens"}, [&] {
    (void)generate_with(fixture, 1, {{20, {1, 2, 3, 4, 5, 6, 7, 8}}}, options);
  });
  expect_error(ErrorKind::kData, {"prompt 21", "0 tokens"}, [&] {
    (void)generate_with(fixture, 1, {{21, {}}}, options);
  });
}

TEST(Generator, SamplingDependsOnSeedAndPromptAloneNotOnBatchOrRanks) {
  const RunFixture fixture;
  GeneratorOptions options;
  options.max_tokens = 10;
  options.sampling.temperature = 1.0;
  const Texts together = generate_with(fixture, 1, some_prompts(), options);
  EXPECT_EQ(generate_with(fixture, 2, some_prompts(), options), together);
  EXPECT_EQ(generate_with(fixture, 1, {some_prompts()[2]}, options)[0], together[2]);
  options.batch = 2;
  EXPECT_EQ(generate_with(fixture, 1, some_prompts(), options), together);
  options.sampling.top_p = 0.9;
  options.sampling.top_k = 40;
  EXPECT_EQ(generate_with(fixture, 4, some_prompts(), options), generate_with(fixture, 1, some_prompts(), options));
  std::vector<Prompt> again = some_prompts();
  for (Prompt& prompt : again) prompt.sample = 1;
  EXPECT_NE(generate_with(fixture, 1, again, options), generate_with(fixture, 1, some_prompts(), options));
  options.sampling.top_p = 1.0;
  options.sampling.top_k = 0;
  options.sampling.seed = 2;
  EXPECT_NE(generate_with(fixture, 1, some_prompts(), options), together);
}

TEST(Generator, SamplesFollowTheSoftmaxAtTheTemperature) {
  RunFixture fixture;
  fixture.model.vocab_size = 4;  // small, so that frequencies are known well
  make_model_folder(fixture.folder / "model", fixture.model, {.seed = 3});
  constexpr std::int64_t kDraws = 4000;
  std::vector<Prompt> prompts;
  for (std::uint64_t i = 0; i < kDraws; ++i) prompts.push_back({i, {1, 3}});
  GeneratorOptions options;
  options.max_tokens = 1;
  options.sampling.temperature = 0.5;

  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto loaded = load_model<float>(session, fixture.config.model.path, true);
  // The head is scaled so that the probabilities differ clearly.
  change_head(session, *loaded, [](std::vector<float>& head) {
    for (float& value : head) value *= 3.0f;
  });
  const Context context = session.context();
  const std::vector<std::int32_t> tokens{1, 3};
  const std::vector<std::int64_t> offsets{0, 2};
  DecoderModel<float>::ActivationsPtr activations;
  const auto hidden = loaded->model->forward(context, {tokens, offsets}, Recompute::kNone, activations);
  const std::vector<float> logits = logits_of(context, *loaded, hidden.row_range(1, 1));
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit / options.sampling.temperature);

  std::vector<double> counts(4, 0.0);
  options.batch = kDraws;
  for (const Continuation& text : generate(session, *loaded->model, prompts, options))
    counts[static_cast<std::size_t>(text.tokens[0])] += 1.0;
  for (std::size_t v = 0; v < 4; ++v) {
    const double probability = std::exp(logits[v] / options.sampling.temperature) / sum;
    const double deviation = std::sqrt(probability * (1.0 - probability) / kDraws);
    EXPECT_NEAR(counts[v] / kDraws, probability, 4.0 * deviation) << v;
  }
}

TEST(Generator, LogitsThatAreNotFiniteEndTheGeneration) {
  const RunFixture fixture;
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto loaded = load_model<float>(session, fixture.config.model.path, true);
  change_head(session, *loaded, [&](std::vector<float>& head) {
    head[static_cast<std::size_t>(17 * fixture.model.hidden_size)] = std::numeric_limits<float>::quiet_NaN();
  });
  expect_error(ErrorKind::kNonFinite, {"prompt 10", "not finite"},
               [&] { (void)generate(session, *loaded->model, some_prompts(), {}); });
}

}  // namespace
}  // namespace reprise
