#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "launcher/progress.hpp"
#include "launcher/session.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

/// A question with several answers, as token ids.
struct ChoiceItem {
  std::vector<std::vector<std::int32_t>> contexts;  ///< one for all choices, or one for each
  std::vector<std::vector<std::int32_t>> choices;   ///< at least two
  std::vector<std::int64_t> chars, bytes;           ///< lengths of the choices' texts; may be empty
  std::vector<std::int64_t> answers;                ///< indices of the right ones

  [[nodiscard]] const std::vector<std::int32_t>& context(std::size_t choice) const {
    return contexts[contexts.size() == 1 ? 0 : choice];
  }
};

/// Reads a file of lines {"context": [ids], "choices": [[ids], ...], "answer": n} as `python -m reprise choices` writes
/// them. `context` may be a list of lists, one per choice (WinoGrande), and `answer` a list where several are right;
/// `choice_chars` and `choice_bytes` are optional. Throws Error(kData) with file and line for what cannot be scored:
/// wrong types or keys, ids outside [0, vocab_size), empty lists, fewer than two choices, answers out of range, choices
/// of more than `max_length` tokens; and for a file without items.
[[nodiscard]] std::vector<ChoiceItem> read_choices(const std::filesystem::path& path, std::int64_t vocab_size,
                                                   std::int64_t max_length);

struct ChoiceScore {
  double log_likelihood = 0.0;  ///< sum of log p(token) over the choice's tokens, behind the context, nats
  std::int64_t tokens = 0;
  bool is_greedy = false;  ///< every token is the model's first choice
};

struct ChoiceOptions {
  std::int64_t max_length = 0;   ///< tokens that the model reads at most; longer contexts lose their beginning
  std::int64_t micro_batch = 8;  ///< sequences, or items that share a context
  Progress* progress = nullptr;  ///< counts items
};

struct ScoredChoices {
  std::vector<std::vector<ChoiceScore>> items;  ///< [items][choices]
  std::int64_t truncated = 0;                   ///< sequences that were cut
};

/// Scores every choice behind its context, the same on every rank. The choices of an item are computed together and its
/// context is read once: choices of one token each share its last row; longer ones follow, in turn, its cached keys and
/// values. Only contexts that differ by choice, or that are cut because they are too long, are read for every choice.
/// Units of 16 items go round robin to the dp ranks; per round one all-gather of 16 bytes per choice over dp. Memory:
/// activations of `micro_batch` sequences, the cache of as many items, and blocks of logits. No sequence parallelism
/// here.
template <class T>
[[nodiscard]] ScoredChoices score_choices(Session& session, const DecoderModel<T>& model,
                                          const std::vector<ChoiceItem>& items, const ChoiceOptions& options);

/// The index of the largest score per choice, the first among equals.
enum class ChoiceLength : std::uint8_t { kNone, kTokens, kChars, kBytes };
[[nodiscard]] std::size_t predict(const ChoiceItem& item, const std::vector<ChoiceScore>& scores, ChoiceLength length);

/// Share of the items whose prediction is a right answer, and its standard error s / sqrt(n) with s over n - 1.
struct Accuracy {
  double value = 0.0;
  double standard_error = 0.0;  ///< NaN for one item
};
[[nodiscard]] Accuracy accuracy(const std::vector<ChoiceItem>& items, const ScoredChoices& scored, ChoiceLength length);

}  // namespace reprise
