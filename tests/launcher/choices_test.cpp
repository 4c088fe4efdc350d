#include "launcher/choices.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <random>

#include "core/gemm.hpp"
#include "core/transfer.hpp"
#include "launcher/model_session.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

/// Items with choices of different lengths, of one token each, and with a context for each choice.
std::vector<ChoiceItem> some_items() {
  std::mt19937_64 generator(5);
  const auto ids = [&](std::size_t count) {
    std::vector<std::int32_t> list(count);
    for (std::int32_t& id : list) id = static_cast<std::int32_t>(generator() % 96);
    return list;
  };
  std::vector<ChoiceItem> items;
  for (std::size_t i = 0; i < 40; ++i) {
    ChoiceItem item;
    const std::size_t choices = 2 + i % 3;
    if (i % 5 == 4) {
      for (std::size_t c = 0; c < choices; ++c) item.contexts.push_back(ids(1 + (i + c) % 6));
    } else {
      item.contexts = {ids(1 + i % 9)};
    }
    for (std::size_t c = 0; c < choices; ++c) {
      item.choices.push_back(ids(i % 2 == 0 ? 1 : 1 + (i + c) % 4));
      item.chars.push_back(static_cast<std::int64_t>(1 + generator() % 9));
      item.bytes.push_back(item.chars.back() + static_cast<std::int64_t>(generator() % 9));
    }
    item.answers = {static_cast<std::int64_t>(i % choices)};
    items.push_back(item);
  }
  return items;
}

ScoredChoices score_with(const RunFixture& fixture, int tensor, int data, const std::vector<ChoiceItem>& items,
                         const ChoiceOptions& options) {
  ScoredChoices scored;
  std::mutex mutex;
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, true);
    const ScoredChoices own = score_choices(session, *model->model, items, options);
    const std::lock_guard lock(mutex);
    if (world.rank() == world.size() - 1) scored = own;
  });
  return scored;
}

/// One forward pass per choice over all of its tokens, softmax in float64.
std::vector<std::vector<ChoiceScore>> score_slowly(const RunFixture& fixture, const std::vector<ChoiceItem>& items,
                                                   std::int64_t max_length) {
  const auto world = make_thread_communicators(1);
  Session session(*world[0], 1, false, 1);
  const auto loaded = load_model<float>(session, fixture.config.model.path, true);
  const Context context = session.context();
  std::vector<std::vector<ChoiceScore>> all;
  for (const ChoiceItem& item : items) {
    all.emplace_back();
    for (std::size_t c = 0; c < item.choices.size(); ++c) {
      std::vector<std::int32_t> tokens = item.context(c);
      tokens.insert(tokens.end(), item.choices[c].begin(), item.choices[c].end());
      tokens.erase(tokens.begin(), tokens.end() - std::min(std::ssize(tokens), max_length + 1));
      const Arena::Scope scope(context.arena);
      const std::vector<std::int64_t> offsets{0, std::ssize(tokens)};
      DecoderModel<float>::ActivationsPtr activations;
      const auto hidden = loaded->model->forward(context, {tokens, offsets}, Recompute::kNone, activations);
      const auto logits = context.arena.matrix<float>(hidden.rows, loaded->config.vocab_size, "logits");
      gemm<float, float>(context.stream, Transpose::kNo, Transpose::kYes, 1.0f, hidden, loaded->model->head_weight(),
                         0.0f, logits);
      const std::vector<float> values = to_host(context.stream, logits.flat());
      ChoiceScore score{0.0, std::ssize(item.choices[c]), true};
      for (std::int64_t t = std::ssize(tokens) - score.tokens; t < std::ssize(tokens); ++t) {
        const float* row = values.data() + (t - 1) * loaded->config.vocab_size;
        const float gold = row[tokens[static_cast<std::size_t>(t)]];
        double sum = 0.0;
        for (std::int64_t v = 0; v < loaded->config.vocab_size; ++v) sum += std::exp(static_cast<double>(row[v]));
        score.log_likelihood += gold - std::log(sum);
        score.is_greedy = score.is_greedy && gold == *std::max_element(row, row + loaded->config.vocab_size);
      }
      all.back().push_back(score);
    }
  }
  return all;
}

TEST(Choices, ScoresAreThoseOfEveryChoiceAloneUnderEveryLayout) {
  const RunFixture fixture;
  const auto items = some_items();
  for (const std::int64_t max_length : {100, 5}) {
    const auto expected = score_slowly(fixture, items, max_length);
    for (const auto& [tensor, data] : {std::pair{1, 1}, {4, 1}, {2, 2}, {1, 4}}) {
      const ScoredChoices scored = score_with(fixture, tensor, data, items, {max_length, 5, nullptr});
      ASSERT_EQ(scored.items.size(), items.size());
      for (std::size_t i = 0; i < items.size(); ++i) {
        ASSERT_EQ(scored.items[i].size(), expected[i].size());
        for (std::size_t c = 0; c < expected[i].size(); ++c) {
          EXPECT_NEAR(scored.items[i][c].log_likelihood, expected[i][c].log_likelihood, 1e-4);
          EXPECT_EQ(scored.items[i][c].tokens, expected[i][c].tokens);
          EXPECT_EQ(scored.items[i][c].is_greedy, expected[i][c].is_greedy);
        }
      }
      std::int64_t truncated = 0;
      for (const ChoiceItem& item : items) {
        for (std::size_t c = 0; c < item.choices.size(); ++c) {
          truncated += std::ssize(item.context(c)) + std::ssize(item.choices[c]) - 1 > max_length ? 1 : 0;
        }
      }
      EXPECT_EQ(scored.truncated, truncated);
    }
  }
}

TEST(Choices, AccuraciesDivideByWhatTheirNamesSay) {
  ChoiceItem item;
  item.contexts = {{1}};
  item.choices = {{1, 2, 3, 4}, {1}, {1, 2}};
  item.chars = {10, 1, 20};
  item.bytes = {12, 1, 60};
  item.answers = {0};
  const std::vector<ChoiceScore> scores = {{-4.0, 4, false}, {-3.0, 1, false}, {-6.0, 2, true}};
  EXPECT_EQ(predict(item, scores, ChoiceLength::kNone), 1u);    // -4, -3, -6
  EXPECT_EQ(predict(item, scores, ChoiceLength::kTokens), 0u);  // -1, -3, -3
  EXPECT_EQ(predict(item, scores, ChoiceLength::kChars), 2u);   // -0.4, -3, -0.3
  EXPECT_EQ(predict(item, scores, ChoiceLength::kBytes), 2u);   // -0.33, -3, -0.1
  EXPECT_EQ(predict(item, {{-1.0, 1, true}, {-1.0, 1, true}, {-1.0, 1, true}}, ChoiceLength::kNone), 0u);

  std::vector<ChoiceItem> items(4, item);
  items[2].answers = {2, 1};
  ScoredChoices scored;
  scored.items.assign(4, scores);
  const Accuracy sum = accuracy(items, scored, ChoiceLength::kNone);
  EXPECT_EQ(sum.value, 0.25);
  EXPECT_DOUBLE_EQ(sum.standard_error, 0.25);  // sqrt(3 (1/4)^2 + (3/4)^2) / sqrt(3) / sqrt(4)
  EXPECT_EQ(accuracy(items, scored, ChoiceLength::kTokens).value, 0.75);
  EXPECT_TRUE(std::isnan(accuracy({item}, {{scores}, 0}, ChoiceLength::kNone).standard_error));
}

TEST(Choices, ReadsWhatIsDocumentedAndRefusesTheRestWithFileAndLine) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "items.jsonl";
  const auto read = [&](const std::string& text) {
    write_file_atomically(path, text);
    return read_choices(path, 96, 6);
  };
  const auto items = read(
      "{\"context\": [1, 2], \"choices\": [[3], [4, 5]], \"answer\": 1, \"choice_chars\": [2, 5], \"choice_bytes\": "
      "[2, 6]}\n\n{\"context\": [[1], [2]], \"choices\": [[3], [3]], \"answer\": [0, 1], \"choice_chars\": [2, 5], "
      "\"choice_bytes\": [2, 6]}");
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[0].context(1), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(items[0].choices[1], (std::vector<std::int32_t>{4, 5}));
  EXPECT_EQ(items[0].answers, (std::vector<std::int64_t>{1}));
  EXPECT_EQ(items[0].bytes, (std::vector<std::int64_t>{2, 6}));
  EXPECT_EQ(items[1].context(1), (std::vector<std::int32_t>{2}));
  EXPECT_EQ(items[1].answers, (std::vector<std::int64_t>{0, 1}));

  const std::string good = R"({"context": [1], "choices": [[3], [4]], "answer": 1})";
  const std::vector<std::pair<std::string, std::string>> bad = {
      {R"({"context": "text", "choices": [[3], [4]], "answer": 1})", "knows no text"},
      {R"({"context": [], "choices": [[3], [4]], "answer": 1})", "at least one token id"},
      {R"({"context": [1], "choices": [[3], []], "answer": 1})", "choices 1"},
      {R"({"context": [1], "choices": [[3], [96]], "answer": 1})", "96"},
      {R"({"context": [-1], "choices": [[3], [6]], "answer": 1})", "-1"},
      {R"({"context": [1], "choices": [[3]], "answer": 0})", "at least two"},
      {R"({"context": [1], "choices": [[3], [4]], "answer": 2})", "answer 2"},
      {R"({"context": [1], "choices": [[3], [4]], "answer": []})", "names no choice"},
      {R"({"context": [1], "choices": [[3], [4]]})", "answer"},
      {R"({"context": [[1]], "choices": [[3], [4]], "answer": 0})", "1 contexts for 2"},
      {R"({"context": [1], "choices": [[3], [4]], "answer": 0, "label": 1})", "unknown key \"label\""},
      {R"({"context": [1], "choices": [[3], [4]], "answer": 0, "choice_bytes": [1]})", "choice_bytes"},
      {R"({"context": [1], "choices": [[3], [4]], "answer": 0, "choice_bytes": [1, 0]})", "above 0"},
      {R"({"context": [1], "choices": [[3], [4]], "answer": 0, "choice_bytes": [1, 1]})", "all items or in none"},
      {R"({"context": [1], "choices": [[3], [1, 2, 3, 4, 5, 6, 7]], "answer": 0})", "7 tokens"},
      {R"([1])", "JSON object"},
      {R"({"context": [1)", ""}};
  for (const auto& [line, reason] : bad) {
    expect_error(ErrorKind::kData, {"items.jsonl:2", reason}, [&] { (void)read(good + "\n" + line + "\n"); });
  }
  expect_error(ErrorKind::kData, {"items.jsonl", "no item"}, [&] { (void)read("\n"); });
}

}  // namespace
}  // namespace reprise
