#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "launcher/sampler.hpp"
#include "launcher/session.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

struct GeneratorOptions {
  std::int64_t max_tokens = 128;       ///< new tokens a document at most; also ends at max_position_embeddings
  std::int64_t batch = 32;             ///< documents under way at a time
  std::int64_t prefill_tokens = 2048;  ///< prompt tokens of a step at most: longer prompts are read in several steps
  SamplingRule sampling;
  std::vector<std::int32_t> stop_ids;  ///< a document ends at any of them
  bool log_probs = false;
  std::function<void(std::int64_t)> on_finished;  ///< gets how many documents have ended
};

/// A prompt and the numbers that its random draws depend on.
struct Prompt {
  std::uint64_t id = 0;
  std::vector<std::int32_t> tokens;  ///< at least one
  std::uint64_t sample = 0;          ///< which continuation of the prompt
};

struct Continuation {
  std::vector<std::int32_t> tokens;  ///< without the end token
  std::int32_t stop_id = -1;         ///< the end token; -1 = cut by max_tokens or the model's last position
  std::vector<float> log_probs;      ///< when asked for: of each token, then of the end token
};

/// Continues prompts, `batch` at a time, with a cache of keys and values; where a document ends, the next prompt takes
/// its place in the same step, so that the batch stays full until the prompts run out. choose_tokens says what is drawn
/// and what travels; a text depends on seed, prompt id and sample alone, not on batch, order or layout, but by
/// rounding. Memory beside the model: the cache, 2 x layers x batch x (longest prompt + max_tokens) x kv heads of this
/// rank x head_dim elements of T; activations of at most prefill_tokens + batch tokens; logits [batch, V / tp] in
/// float32. Collective over tp. Throws Error(kData) for a prompt that leaves the model no position, Error(kNonFinite)
/// for logits that are not finite.
template <class T>
[[nodiscard]] std::vector<Continuation> generate(Session& session, const DecoderModel<T>& model,
                                                 const std::vector<Prompt>& prompts, const GeneratorOptions& options);

}  // namespace reprise
