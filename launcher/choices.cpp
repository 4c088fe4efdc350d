#include "launcher/choices.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "core/error.hpp"
#include "core/trace.hpp"
#include "launcher/json_lines.hpp"
#include "loss/target_statistics.hpp"

namespace reprise {

namespace {

using nlohmann::json;

constexpr std::int64_t kItemsPerUnit = 16;

std::vector<std::vector<std::int32_t>> lists_of_ids(const json& value, const std::string& what, std::int64_t vocab_size,
                                                    const std::string& where) {
  require(value.is_array() && !value.empty(), ErrorKind::kData, "{}: {} must be a list of lists of token ids", where,
          what);
  std::vector<std::vector<std::int32_t>> lists;
  for (std::size_t i = 0; i < value.size(); ++i) {
    lists.push_back(ids_of(value[i], fmt::format("{} {}", what, i), vocab_size, where));
  }
  return lists;
}

std::vector<std::int64_t> lengths_of(const json& line, const std::string& key, std::size_t choices,
                                     const std::string& where) {
  std::vector<std::int64_t> lengths;
  if (!line.contains(key)) return lengths;
  const json& value = line[key];
  require(value.is_array() && value.size() == choices, ErrorKind::kData, "{}: {} must be one length for each choice",
          where, key);
  for (const json& length : value) {
    require(length.is_number_unsigned() && length.get<std::uint64_t>() > 0, ErrorKind::kData,
            "{}: {} holds {}; lengths must be whole numbers above 0", where, key, length.dump().substr(0, 40));
    lengths.push_back(length.get<std::int64_t>());
  }
  return lengths;
}

std::vector<std::int64_t> answers_of(const json& value, std::size_t choices, const std::string& where) {
  const json list = value.is_array() ? value : json::array({value});
  require(!list.empty(), ErrorKind::kData, "{}: answer names no choice", where);
  std::vector<std::int64_t> answers;
  for (const json& answer : list) {
    require(answer.is_number_unsigned() && answer.get<std::uint64_t>() < choices, ErrorKind::kData,
            "{}: answer {} is not the index of one of {} choices (they count from 0)", where,
            answer.dump().substr(0, 40), choices);
    answers.push_back(answer.get<std::int64_t>());
  }
  return answers;
}

ChoiceItem read_item(const json& line, const std::string& where, std::int64_t vocab_size, std::int64_t max_length) {
  require_known_keys(line, {"context", "choices", "answer", "choice_chars", "choice_bytes"}, where);
  for (const char* key : {"context", "choices", "answer"}) {
    require(line.contains(key), ErrorKind::kData, "{}: no \"{}\"", where, key);
  }
  ChoiceItem item;
  item.choices = lists_of_ids(line["choices"], "choices", vocab_size, where);
  const std::size_t count = item.choices.size();
  require(count >= 2, ErrorKind::kData, "{}: {} choice; a question has at least two", where, count);
  for (const auto& choice : item.choices) {
    require(std::ssize(choice) <= max_length, ErrorKind::kData,
            "{}: a choice of {} tokens, where the model reads {} at most", where, choice.size(), max_length);
  }
  const json& context = line["context"];
  if (context.is_array() && !context.empty() && context[0].is_array()) {
    item.contexts = lists_of_ids(context, "context", vocab_size, where);
    require(item.contexts.size() == count, ErrorKind::kData, "{}: {} contexts for {} choices", where,
            item.contexts.size(), count);
  } else {
    item.contexts = {ids_of(context, "context", vocab_size, where)};
  }
  item.answers = answers_of(line["answer"], count, where);
  item.chars = lengths_of(line, "choice_chars", count, where);
  item.bytes = lengths_of(line, "choice_bytes", count, where);
  return item;
}

/// Choices to be scored from the hidden states of a batch of sequences.
struct ChoiceTargets {
  std::vector<std::int32_t> row, gold;
  std::vector<std::int64_t> begin{0};  ///< [choices + 1] of the targets
  std::vector<std::size_t> place;      ///< [choices] of the scores

  /// `end`: the row behind the last one of the sequence, which is all of context and choice but the last token.
  void append(std::int64_t end, const std::vector<std::int32_t>& choice, std::size_t score) {
    for (std::size_t i = 0; i < choice.size(); ++i) {
      row.push_back(static_cast<std::int32_t>(end - std::ssize(choice) + static_cast<std::int64_t>(i)));
      gold.push_back(choice[i]);
    }
    begin.push_back(std::ssize(row));
    place.push_back(score);
  }
};

/// Two numbers a choice: its log-likelihood, and 1 where all of its tokens are first choices.
using Scores = std::vector<double>;

template <class T>
void score_targets(Session& session, const DecoderModel<T>& model, MatrixView<const T> hidden,
                   const ChoiceTargets& targets, Scores& scores) {
  const TargetStatistics measured = measure_targets<T>(session.context(), session.host(), hidden, model.head_weight(),
                                                       model.vocab(), {targets.row, targets.gold, hidden.rows});
  for (std::size_t c = 0; c < targets.place.size(); ++c) {
    const std::int64_t begin = targets.begin[c], end = targets.begin[c + 1];
    const auto& log_prob = measured.log_prob;
    scores[2 * targets.place[c]] = std::accumulate(log_prob.begin() + begin, log_prob.begin() + end, 0.0);
    const auto tops = std::count(measured.is_top.begin() + begin, measured.is_top.begin() + end, 1);
    scores[2 * targets.place[c] + 1] = tops == end - begin ? 1.0 : 0.0;
  }
}

/// Items whose sequences are read whole, one behind the other.
struct WholeSequences {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets{0};
  ChoiceTargets targets;
  std::int64_t truncated = 0;

  [[nodiscard]] std::int64_t size() const { return std::ssize(offsets) - 1; }

  void append(const ChoiceItem& item, std::size_t first_score, std::int64_t max_length) {
    const auto first = static_cast<std::size_t>(size());
    for (std::size_t c = 0; c < item.choices.size(); ++c) {
      const auto& choice = item.choices[c];
      std::vector<std::int32_t> input = item.context(c);
      input.insert(input.end(), choice.begin(), choice.end() - 1);  // the last token is predicted, not read
      const auto excess = std::ssize(input) - max_length;
      if (excess > 0) input.erase(input.begin(), input.begin() + excess);
      truncated += excess > 0 ? 1 : 0;
      targets.append(end_of(input, first), choice, first_score + c);
    }
  }

  template <class T>
  void score(Session& session, const DecoderModel<T>& model, Scores& scores) const {
    const Context context = session.context();
    const Arena::Scope scope(context.arena);
    typename DecoderModel<T>::ActivationsPtr activations;
    const MatrixView<T> hidden = model.forward(context, {tokens, offsets}, Recompute::kNoBackward, activations);
    score_targets<T>(session, model, hidden, targets, scores);
  }

 private:
  /// Where the sequence ends that is `input`, behind sequence `first`; it is appended when there is none.
  std::int64_t end_of(const std::vector<std::int32_t>& input, std::size_t first) {
    for (std::size_t s = first; s + 1 < offsets.size(); ++s) {
      if (std::equal(input.begin(), input.end(), tokens.begin() + offsets[s], tokens.begin() + offsets[s + 1])) {
        return offsets[s + 1];
      }
    }
    tokens.insert(tokens.end(), input.begin(), input.end());
    offsets.push_back(std::ssize(tokens));
    return offsets.back();
  }
};

/// Items whose context is read once: its keys and values stay, and each choice in turn takes the place of the last one
/// behind them.
struct SharedContexts {
  std::vector<const ChoiceItem*> items;
  std::vector<std::size_t> first_score;

  [[nodiscard]] std::int64_t size() const { return std::ssize(items); }

  template <class T>
  void score(Session& session, const DecoderModel<T>& model, Scores& scores) const {
    const Context context = session.context();
    std::int64_t longest = 0;
    std::size_t most = 0;
    for (const ChoiceItem* item : items) {
      longest = std::max(longest, longest_input(*item));
      most = std::max(most, item->choices.size());
    }
    const auto cache = model.make_cache(size(), longest);
    for (std::size_t c = 0; c < most; ++c) {
      const Arena::Scope scope(context.arena);
      std::vector<std::int32_t> tokens;
      std::vector<std::int64_t> offsets{0};
      ChoiceTargets targets;
      for (std::size_t i = 0; i < items.size(); ++i) {
        if (c < items[i]->choices.size()) {
          const auto& before = items[i]->contexts[0];
          const auto& choice = items[i]->choices[c];
          // The context's last token is read again for each choice: what follows it is the choice's first token.
          const std::int64_t kept = c == 0 ? 0 : std::ssize(before) - 1;
          model.restart(*cache, static_cast<std::int64_t>(i), kept);
          tokens.insert(tokens.end(), before.begin() + kept, before.end());
          tokens.insert(tokens.end(), choice.begin(), choice.end() - 1);
          targets.append(std::ssize(tokens), choice, first_score[i] + c);
        }
        offsets.push_back(std::ssize(tokens));
      }
      score_targets<T>(session, model, model.decode(context, *cache, {tokens, offsets}), targets, scores);
    }
  }

  static std::int64_t longest_input(const ChoiceItem& item) {
    std::size_t longest = 0;
    for (const auto& choice : item.choices) longest = std::max(longest, choice.size());
    return std::ssize(item.contexts[0]) + static_cast<std::int64_t>(longest) - 1;
  }
  /// One context before different inputs, all of them short enough to be read whole.
  static bool takes(const ChoiceItem& item, std::int64_t max_length) {
    return item.contexts.size() == 1 && longest_input(item) > std::ssize(item.contexts[0]) &&
           longest_input(item) <= max_length;
  }
};

/// The scores of the choices of some items, one item behind the other; returns how many sequences were cut.
template <class T>
std::int64_t score_items(Session& session, const DecoderModel<T>& model, std::span<const ChoiceItem> items,
                         const ChoiceOptions& options, Scores& scores) {
  std::int64_t truncated = 0;
  std::size_t count = 0;
  WholeSequences whole;
  SharedContexts shared;
  for (std::size_t i = 0; i < items.size(); ++i) {
    scores.resize(2 * (count + items[i].choices.size()));
    if (SharedContexts::takes(items[i], options.max_length)) {
      shared.items.push_back(&items[i]);
      shared.first_score.push_back(count);
    } else {
      whole.append(items[i], count, options.max_length);
    }
    count += items[i].choices.size();
    const bool last = i + 1 == items.size();
    if (whole.size() >= options.micro_batch || (last && whole.size() > 0)) {
      whole.score(session, model, scores);
      truncated += whole.truncated;
      whole = {};
    }
    if (shared.size() >= options.micro_batch || (last && shared.size() > 0)) {
      shared.score(session, model, scores);
      shared = {};
    }
  }
  return truncated;
}

Range items_of_unit(const std::vector<ChoiceItem>& items, std::int64_t unit) {
  const std::int64_t count = std::ssize(items);
  return {std::min(count, unit * kItemsPerUnit), std::min(count, (unit + 1) * kItemsPerUnit)};
}

double length_of(const ChoiceItem& item, const ChoiceScore& score, std::size_t choice, ChoiceLength length) {
  switch (length) {
    case ChoiceLength::kNone: return 1.0;
    case ChoiceLength::kTokens: return static_cast<double>(score.tokens);
    case ChoiceLength::kChars: return static_cast<double>(item.chars.at(choice));
    case ChoiceLength::kBytes: return static_cast<double>(item.bytes.at(choice));
  }
  return 1.0;
}

}  // namespace

std::vector<ChoiceItem> read_choices(const std::filesystem::path& path, std::int64_t vocab_size,
                                     std::int64_t max_length) {
  std::vector<ChoiceItem> items;
  read_json_lines(path, [&](const json& line, const std::string& where) {
    items.push_back(read_item(line, where, vocab_size, max_length));
    const ChoiceItem &first = items.front(), &item = items.back();
    require(first.chars.empty() == item.chars.empty() && first.bytes.empty() == item.bytes.empty(), ErrorKind::kData,
            "{}: choice_chars and choice_bytes must stand in all items or in none", where);
  });
  require(!items.empty(), ErrorKind::kData, "{}: no item in the file", path.string());
  return items;
}

template <class T>
ScoredChoices score_choices(Session& session, const DecoderModel<T>& model, const std::vector<ChoiceItem>& items,
                            const ChoiceOptions& options) {
  const TraceRange range("choices");
  Communicator& dp = *session.groups().dp;
  const std::int64_t units = (std::ssize(items) + kItemsPerUnit - 1) / kItemsPerUnit;
  ScoredChoices scored;
  for (std::int64_t round = 0; round < units; round += dp.size()) {
    Scores own;
    const Range own_items = items_of_unit(items, round + dp.rank());
    scored.truncated += score_items(
        session, model,
        std::span(items).subspan(static_cast<std::size_t>(own_items.begin), static_cast<std::size_t>(own_items.size())),
        options, own);
    std::vector<std::int64_t> counts;
    for (int r = 0; r < dp.size(); ++r) {
      const Range of_rank = items_of_unit(items, round + r);
      counts.push_back(0);
      for (std::int64_t i = of_rank.begin; i < of_rank.end; ++i) {
        counts.back() += 2 * std::ssize(items[static_cast<std::size_t>(i)].choices);
      }
    }
    std::vector<double> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
    dp.all_gather<double>(session.host(), own, all, counts);
    for (auto word = all.begin(); word != all.end();) {
      scored.items.emplace_back();
      for (const auto& choice : items[scored.items.size() - 1].choices) {
        scored.items.back().push_back({*word, std::ssize(choice), *(word + 1) > 0.0});
        word += 2;
      }
    }
    if (options.progress != nullptr) options.progress->update(std::ssize(scored.items));
  }
  dp.all_reduce<std::int64_t>(session.host(), {&scored.truncated, 1});
  return scored;
}

template ScoredChoices score_choices(Session&, const DecoderModel<float>&, const std::vector<ChoiceItem>&,
                                     const ChoiceOptions&);
template ScoredChoices score_choices(Session&, const DecoderModel<BFloat16>&, const std::vector<ChoiceItem>&,
                                     const ChoiceOptions&);

std::size_t predict(const ChoiceItem& item, const std::vector<ChoiceScore>& scores, ChoiceLength length) {
  std::size_t best = 0;
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t c = 0; c < scores.size(); ++c) {
    const double score = scores[c].log_likelihood / length_of(item, scores[c], c, length);
    if (score > largest) {
      largest = score;
      best = c;
    }
  }
  return best;
}

Accuracy accuracy(const std::vector<ChoiceItem>& items, const ScoredChoices& scored, ChoiceLength length) {
  double right = 0.0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto predicted = static_cast<std::int64_t>(predict(items[i], scored.items[i], length));
    const auto& answers = items[i].answers;
    right += std::find(answers.begin(), answers.end(), predicted) != answers.end() ? 1.0 : 0.0;
  }
  const auto count = static_cast<double>(items.size());
  const double mean = right / count;
  // sum (x - mean)^2 of ones and zeros is n mean (1 - mean); over n - 1 and n for one item that is 0 / 0.
  return {mean, std::sqrt(mean * (1.0 - mean) / (count - 1.0))};
}

}  // namespace reprise
